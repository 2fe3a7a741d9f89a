"""Parameters under standard names: live, zero-copy views."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mechfeat.errors import HookNameError, OptionError, ShapeError
from mechfeat.hooks.adapters import View, adapter_for
from mechfeat.hooks.adapters.base import join, transposed
from mechfeat.hooks.lowrank import LowRank
from mechfeat.hooks.names import Pattern

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_SPACE = {1: ("kernel",), 2: ("kernel_height", "kernel_width"), 3: ("kernel_depth", "kernel_height", "kernel_width")}


class Weights(Mapping[str, Tensor]):
    """Views of the parameters of convolutions, linear layers, embeddings, norms and attention.

    Names are ``path.part``: ``kernel [out in kh kw]`` and ``b [out]`` of convolutions, ``W [out in]`` and ``b`` of linear
    layers (that of GPT-2's ``Conv1D`` is turned to the same orientation), ``W_E [token channel]`` of embeddings, ``w`` and
    ``b [channel]`` of norms.

    Attention of torch, of GPT-2, Llama, BERT and ViT as ``transformers`` writes them, and of the bridge of TransformerLens has names
    per head in addition, on the path of the attention module (``blocks.0.attn`` on a bridge): ``W_Q W_K W_V [head d_model d_head]``,
    ``W_O [head d_head d_model]``, ``b_Q b_K b_V [head d_head]``, ``b_O [d_model]``; so do MLPs, on theirs or on that of the block if
    they have no module: ``W_in [d_model d_mlp]``, ``W_out [d_mlp d_model]``, ``W_gate`` where they are gated, and models of
    ``transformers`` and bridges: ``W_E [d_vocab d_model]``, ``W_pos``, ``W_U [d_model d_vocab]``. As in TransformerLens they multiply
    from the right, ``x @ W_Q[head] + b_Q[head]``. Where several query heads share keys and values, ``W_K`` and ``W_V`` have as many
    heads as there are; see :meth:`expanded`.

    Each read is a view of the parameter as it is now: it follows optimiser steps,
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

    def _table(self) -> dict[str, View]:
        """Name → view; read afresh, since modules may change."""
        table: dict[str, View] = {}
        for path, m in self._module.named_modules():
            table.update({join(path, part): view for part, view in _parts(m).items() if view.exists})
        return {**table, **adapter_for(self._module).views}

    def __getitem__(self, name: str) -> Tensor:
        return self._entry(name).read()

    def _entry(self, name: str) -> View:
        table = self._table()
        if name not in table:
            raise _unknown(name, table)
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
        return self._entry(name).axes

    def stacked(self, part: str) -> Tensor:
        """One weight of all layers.

        Args:
            part: Its last name, such as ``W_Q``, or a glob of whole names, such as ``encoder.**.W_Q``.

        Returns:
            The weights along a first axis ``layer``, in order of definition: ``[layer head d_model d_head]`` for ``W_Q``. A copy, made at
            each call, that carries gradients but does not follow later updates, unlike the views of single layers.

        Raises:
            HookNameError: No weight has this name.
            ShapeError: The layers differ in shape.
        """
        table = self._table()
        pattern = Pattern.parse(part if "*" in part or "." in part else f"**.{part}")
        names = [n for n in table if pattern.matches_path(n)]
        if not names:
            raise _unknown(part, [*dict.fromkeys(n.rpartition(".")[2] for n in table)])
        values = [table[n].read() for n in names]
        shapes = {n: list(v.shape) for n, v in zip(names, values)}
        if len({tuple(v.shape) for v in values}) > 1:
            raise ShapeError(f"{part!r} cannot be stacked: the shapes are {shapes}. Select layers of one shape with a glob.")
        return torch.stack(values)

    def expanded(self, name: str) -> Tensor:
        """Keys' or values' weights with one head for each query head.

        Args:
            name: Name of a ``W_K``, ``W_V``, ``b_K`` or ``b_V``; others are given as they are.

        Returns:
            ``[head ...]`` as many heads as ``W_Q`` of the same module, those shared by several queries repeated next to each other: a copy.
            Where no head is shared, the view itself.
        """
        value = self[name]
        path, _, part = name.rpartition(".")
        if part not in ("W_K", "W_V", "b_K", "b_V"):
            return value
        repeats = self[join(path, "W_Q")].shape[0] // value.shape[0]
        return value if repeats == 1 else value.repeat_interleave(repeats, 0)

    def QK(self, layer: int | str, head: int) -> LowRank:
        r"""The QK circuit of a head, :math:`W_Q W_K^\top`: ``x_query @ QK @ x_key`` is its score before scaling, without biases.

        The scores of a model with rotary positions have a rotation between the factors, which is not part of the weights; there
        this is the score of a position with itself.

        Args:
            layer: Which of the attention modules with standard weights, in order of definition from 0, or its path.
            head: Which query head; it may share its keys with others.

        Returns:
            ``[d_model d_model]``, of rank ``d_head`` at most: query side first. The factors are views.

        Raises:
            OptionError: There is no such layer or head.

        Source:
            Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*; transposed as in TransformerLens.
        """
        path, shared = self._head(layer, head)
        return LowRank(self[join(path, "W_Q")][head], self[join(path, "W_K")][shared].T)

    def OV(self, layer: int | str, head: int) -> LowRank:
        """The OV circuit of a head, ``W_V W_O``: ``x_key @ OV`` is what it writes where it attends to ``x_key``, without biases.

        Args:
            layer: Which of the attention modules with standard weights, in order of definition from 0, or its path.
            head: Which query head; it may share its values with others.

        Returns:
            ``[d_model d_model]``, of rank ``d_head`` at most: what is read first. The factors are views.

        Raises:
            OptionError: There is no such layer or head.

        Source:
            Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*; transposed as in TransformerLens.
        """
        path, shared = self._head(layer, head)
        return LowRank(self[join(path, "W_V")][shared], self[join(path, "W_O")][head])

    def _head(self, layer: int | str, head: int) -> tuple[str, int]:
        """Path of an attention module, and which of its key heads serves a query head."""
        table = self._table()
        # W_O as well, since what has queries alone is no head.
        paths = [n.rpartition(".")[0] for n in table if n.rpartition(".")[2] == "W_Q" and join(n.rpartition(".")[0], "W_O") in table]
        known = paths if isinstance(layer, str) else range(len(paths))
        if layer not in known:
            raise OptionError("layer", layer, known)
        path = layer if isinstance(layer, str) else paths[layer]
        n_heads, n_shared = (table[join(path, w)].read().shape[0] for w in ("W_Q", "W_K"))
        if head not in range(n_heads):
            raise OptionError("head", head, range(n_heads))
        return path, head // (n_heads // n_shared)


def _unknown(name: str, known: Iterable[str]) -> HookNameError:
    error = HookNameError(name, list(known))
    error.args = (error.args[0].replace("hook point", "weight").replace("`model.hook_names()`", "`list(model.weights)`"),)
    return error


def _parts(m: nn.Module) -> dict[str, View]:
    if isinstance(m, nn.modules.conv._ConvNd):
        axes = ("out", "in", *_SPACE[len(m.kernel_size)])
        return {"kernel": View(m, "weight", axes, transposed if m.transposed else None), "b": View(m, "bias", ("out",))}
    if isinstance(m, nn.Linear):
        return {"W": View(m, "weight", ("out", "in")), "b": View(m, "bias", ("out",))}
    if type(m).__name__ == "Conv1D" and hasattr(m, "nf"):
        return {"W": View(m, "weight", ("out", "in"), transposed), "b": View(m, "bias", ("out",))}
    if isinstance(m, nn.Embedding | nn.EmbeddingBag):
        return {"W_E": View(m, "weight", ("token", "channel"))}
    if isinstance(m, _NORMS):
        return {"w": View(m, "weight", ("channel",)), "b": View(m, "bias", ("channel",))}
    return {}
