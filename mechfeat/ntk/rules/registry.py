"""The registry of rules and what a rule is told about a call."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mechfeat.ntk.factors import Factor
from mechfeat.ntk.views import Place


class Unfit(Exception):
    """A rule's word that it does not cover a call; the parameter goes to the exact path with this as the reason."""


@dataclass(frozen=True)
class Call:
    """One call of a torch function that received a trainable parameter.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        out: What it returned.
        n: Number of samples in the batch.
        owned: Identities of the trainable parameters and of views of them.
        name: Name of the function.
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    out: Tensor
    n: int
    owned: Container[int]
    name: str = ""

    def argument(self, i: int, name: str, default: Any = None) -> Any:
        """An argument given by position or keyword.

        Args:
            i: Its position.
            name: Its keyword.
            default: What it is if not given.

        Returns:
            Its value.
        """
        return self.args[i] if len(self.args) > i else self.kwargs.get(name, default)

    def owns(self, value: Any) -> bool:
        """Whether a value is a trainable parameter, or a view of one.

        Args:
            value: An argument.

        Returns:
            True for the very parameter and for what shows some of its entries, not for what is computed from it.
        """
        return isinstance(value, Tensor) and id(value) in self.owned

    def input_rows(self, x: Tensor) -> Float[Tensor, "n t k"]:
        """Rows of an input with its channels last, without graph.

        Args:
            x: ``[n *position k]``, or ``[(n position) k]`` with samples and positions flattened, samples outermost.

        Returns:
            A view or copy ``[n t k]``.

        Raises:
            Unfit: The input has no sample axis, or is itself a parameter.
        """
        if self.owns(x):
            raise Unfit("its input is a parameter")
        self._check_samples(x)
        return x.detach().reshape(self.n, x.shape[:-1].numel() // self.n, x.shape[-1])

    def gradient_rows(self, g: Float[Tensor, "o ..."]) -> Float[Tensor, "n o t c"]:
        """Gradients at an output with its channels last, as left factors.

        Args:
            g: Gradients, outputs first, then the shape of the call's output.

        Returns:
            ``[n o t c]``.
        """
        return g.reshape(g.shape[0], self.n, g.shape[1:-1].numel() // self.n, g.shape[-1]).transpose(0, 1)

    def _check_samples(self, x: Tensor) -> None:
        flattened = x.ndim == 2 and x.shape[0] % self.n == 0
        if x.ndim < 2 or (x.shape[0] != self.n and not flattened):
            raise Unfit(f"its input of shape {tuple(x.shape)} has no axis of {self.n} samples")


@dataclass(frozen=True)
class Use:
    """One parameter in one call.

    Attributes:
        parameter: The parameter, or the view of it that the call received.
        factor: From the gradients at the call's output, ``[o *out]``, to the parameter's gradient factor.
        bias_of: The weight of the same call, if this parameter is added to its every output position: one contraction then does both.
        small: The factor is a :class:`~mechfeat.ntk.factors.Dense` far smaller than the gradients it is made of, which then need not be
            kept until those of all outputs have arrived.
        order: The factor is that of the parameter with its axes in this order, and those of rows and columns each as one.
        place: Set by the capture: which entries of the parameter the factor is of; None where it is of all in their order.
    """

    parameter: Tensor
    factor: Callable[[Tensor], Factor]
    bias_of: Tensor | None = None
    small: bool = False
    order: tuple[int, ...] | None = None
    place: Place | None = None


Rule = Callable[[Call], list[Use]]
_RULES: dict[Any, Rule] = {}
_registrations = 0


def register_rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Decorator: make a function the rule of some torch functions. A later rule replaces an earlier one.

    Args:
        *functions: Torch functions or tensor methods, as a ``TorchFunctionMode`` meets them.

    Returns:
        The decorator.

    Example:
        >>> import torch
        >>> from mechfeat.ntk.factors import Dense
        >>> @register_rule(torch.ops.aten.alias)
        ... def alias(call):
        ...     return [Use(call.args[0], lambda g: Dense(g.transpose(0, 1)))]
        >>> rule_for(torch.ops.aten.alias) is alias
        True
    """

    def decorate(rule: Rule) -> Rule:
        global _registrations
        _registrations += 1
        for function in functions:
            _RULES[function] = rule
        return rule

    return decorate


def registrations() -> int:
    """How often a rule was registered: what was proved under other rules is not proved.

    Returns:
        The count.
    """
    return _registrations


def rule_for(function: Any) -> Rule | None:
    """The rule of a torch function.

    Args:
        function: The function.

    Returns:
        Its rule, or None.
    """
    try:
        return _RULES.get(function)
    except TypeError:  # not hashable, hence not registered
        return None
