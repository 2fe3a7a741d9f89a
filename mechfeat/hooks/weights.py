"""Parameters under standard names: live, zero-copy views."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from mechfeat.errors import HookNameError

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_SPACE = {1: ("kernel",), 2: ("kernel_height", "kernel_width"), 3: ("kernel_depth", "kernel_height", "kernel_width")}


class Weights(Mapping[str, Tensor]):
    """Views of the parameters of convolutions, linear layers, embeddings and norms.

    Names are ``path.part``: ``kernel [out in kh kw]`` and ``b [out]`` of convolutions, ``W [out in]`` and ``b`` of linear
    layers (that of GPT-2's ``Conv1D`` is turned to the same orientation), ``W_E [token channel]`` of embeddings, ``w`` and
    ``b [channel]`` of norms. Each read is a view of the parameter as it is now: it follows optimiser steps,
    ``load_state_dict`` and ``.to()``, and carries gradients.

    Args:
        module: The model.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> W = Weights(net)
        >>> list(W), W.axes("0.kernel")
        (['0.kernel', '0.b', '2.W', '2.b'], ('out', 'in', 'kernel_height', 'kernel_width'))
        >>> W["2.W"].data_ptr() == net[2].weight.data_ptr()
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def _table(self) -> dict[str, tuple[nn.Module, str, bool, tuple[str, ...]]]:
        """Name → module, attribute, transposed, axes; read afresh, since modules may change."""
        table: dict[str, tuple[nn.Module, str, bool, tuple[str, ...]]] = {}
        for path, m in self._module.named_modules():
            prefix = f"{path}." if path else ""
            for part, attribute, turned, axes in _parts(m):
                if getattr(m, attribute, None) is not None:
                    table[prefix + part] = (m, attribute, turned, axes)
        return table

    def __getitem__(self, name: str) -> Tensor:
        module, attribute, turned, _ = self._entry(name)
        value: Tensor = getattr(module, attribute)
        return value.transpose(0, 1) if turned else value

    def _entry(self, name: str) -> tuple[nn.Module, str, bool, tuple[str, ...]]:
        table = self._table()
        if name not in table:
            error = HookNameError(name, list(table))
            error.args = (error.args[0].replace("hook point", "weight").replace("`model.hook_names()`", "`list(model.weights)`"),)
            raise error
        return table[name]

    def __contains__(self, name: object) -> bool:
        return name in self._table()

    def get(self, name: str, default: Any = None) -> Any:
        """The weight, or a default where there is none of that name.

        Args:
            name: Its name.
            default: What to return then.

        Returns:
            The view or the default.
        """
        return self[name] if name in self else default  # noqa: SIM401 - this is the get

    def __iter__(self) -> Iterator[str]:
        return iter(self._table())

    def __len__(self) -> int:
        return len(self._table())

    def axes(self, name: str) -> tuple[str, ...]:
        """Names of the axes of a weight.

        Args:
            name: Its name.

        Returns:
            One name an axis.
        """
        return self._entry(name)[3]


def _parts(m: nn.Module) -> list[tuple[str, str, bool, tuple[str, ...]]]:
    if isinstance(m, nn.modules.conv._ConvNd):
        space = _SPACE[len(m.kernel_size)]
        return [("kernel", "weight", m.transposed, ("out", "in", *space)), ("b", "bias", False, ("out",))]
    if isinstance(m, nn.Linear):
        return [("W", "weight", False, ("out", "in")), ("b", "bias", False, ("out",))]
    if type(m).__name__ == "Conv1D" and hasattr(m, "nf"):
        return [("W", "weight", True, ("out", "in")), ("b", "bias", False, ("out",))]
    if isinstance(m, nn.Embedding | nn.EmbeddingBag):
        return [("W_E", "weight", False, ("token", "channel"))]
    if isinstance(m, _NORMS):
        return [("w", "weight", False, ("channel",)), ("b", "bias", False, ("channel",))]
    return []
