"""What a toy model is: sizes, nonlinearities and options, without weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import storable

Function = Callable[[Tensor], Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Function] = {"relu": torch.relu, "gelu": F.gelu, "identity": _identity}
"""Activations by name; GELU is the exact one, x times the normal distribution function."""


@storable
@dataclass(frozen=True, kw_only=True)
class _Options:
    n_outputs: int | None = None
    activation: str | Function = "relu"
    tied: bool = True
    out_bias: bool = True
    hidden_activation: str | Function | None = None
    hidden_bias: bool = False
    shift: float = 0.0
    scale: float = 1.0
    unit_norm: bool = False
    d_mlp: int = 0
    mlp_activation: str | Function = "gelu"


@storable
@dataclass(frozen=True)
class ToySpec(_Options):
    r"""A model of ``n_features`` features through ``n_hidden`` dimensions and back.

    .. math:: h = \sigma_h(x W + b_h), \qquad h \leftarrow h + \sigma_m(h W_{in} + b_{in}) W_{out} + b_{out}, \qquad
              \hat x = \sigma(s\, h U^\top + b + c)

    Row :math:`i` of :math:`W` is the direction of feature :math:`i`, row :math:`i` of :math:`U` the one that output
    :math:`i` reads; tied models have :math:`U = W`. The defaults are the ReLU output model; the second step exists with
    ``d_mlp`` only.

    Attributes:
        n_features: Features.
        n_hidden: Hidden dimensions.
        n_outputs: Outputs; as many as features if None.
        activation: :math:`\sigma`: ``"relu"``, ``"gelu"``, ``"identity"``, or a function of a tensor.
        tied: Whether :math:`U = W`.
        out_bias: Whether there is an output bias :math:`b`.
        hidden_activation: :math:`\sigma_h`; None for a linear hidden layer.
        hidden_bias: Whether there is a hidden bias :math:`b_h`.
        shift: :math:`c`, added before the activation and not trained.
        scale: :math:`s`, not trained.
        unit_norm: Rows of :math:`W` and :math:`U` are used at length 1, whatever their length.
        d_mlp: Neurons of a residual MLP on the hidden layer; 0 for none.
        mlp_activation: :math:`\sigma_m`.

    Raises:
        ShapeError: A size is not positive, a linear hidden layer is wider than the input, or a tied model has another number of
            outputs than features.
        OptionError: An activation is not known.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*.

    Example:
        >>> ToySpec(5, 2, tied=False).parameter_shapes()
        {'W': (5, 2), 'U': (5, 2), 'b': (5,)}
    """

    n_features: int
    n_hidden: int

    def __post_init__(self) -> None:
        for name in ("n_features", "n_hidden", "outputs"):
            if getattr(self, name) < 1:
                shown = "n_outputs" if name == "outputs" else name
                raise ShapeError(f"ToySpec was asked for {shown}={getattr(self, name)}. A toy model has at least one of each.")
        if self.d_mlp < 0:
            raise ShapeError(f"ToySpec was asked for d_mlp={self.d_mlp}. It is a number of neurons, 0 for no MLP.")
        if self.tied and self.outputs != self.n_features:
            raise ShapeError(
                f"A tied model reads its outputs along the directions of its {self.n_features} features, so it cannot have {self.outputs} "
                "outputs. Set tied=False."
            )
        if self.n_hidden > self.n_features and self.hidden_activation is None:
            raise ShapeError(
                f"n_hidden={self.n_hidden} is more than n_features={self.n_features}: a linear hidden layer holds every feature in "
                f"{self.n_features} dimensions, and the rest would be idle. Take n_hidden <= {self.n_features}, or set hidden_activation "
                "for a model that computes in its hidden layer."
            )
        for name in ("activation", "hidden_activation", "mlp_activation"):
            value = getattr(self, name)
            if isinstance(value, str) and value not in ACTIVATIONS:
                raise OptionError(name, value, [*ACTIVATIONS, "a function of a tensor"])

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.n_features if self.n_outputs is None else self.n_outputs

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters of one instance.

        Returns:
            Name → shape, in the order in which initial values are drawn.
        """
        f, h, o, d = self.n_features, self.n_hidden, self.outputs, self.d_mlp
        shapes: dict[str, tuple[int, ...]] = {"W": (f, h)}
        if self.hidden_bias:
            shapes["b_hidden"] = (h,)
        if d:
            shapes |= {"W_in": (h, d), "b_in": (d,), "W_out": (d, h), "b_out": (h,)}
        if not self.tied:
            shapes["U"] = (o, h)
        if self.out_bias:
            shapes["b"] = (o,)
        return shapes


def activation_function(activation: str | Function | None) -> Function:
    """The function that an activation names.

    Args:
        activation: A name, a function, or None for the identity.

    Returns:
        A function of a tensor.
    """
    if activation is None:
        return _identity
    return ACTIVATIONS[activation] if isinstance(activation, str) else activation
