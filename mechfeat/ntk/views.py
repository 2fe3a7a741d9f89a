"""Views of parameters: transposed, sliced, reshaped, expanded, indexed. A view shows entries of its parameter, so a rule that gives
the gradient of the view has given that of the parameter: the same numbers in another place.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F


class Place:
    """Which entries of a parameter a view shows, in the order of the view's own entries.

    Args:
        whole: Shape of the parameter.
        shape: Shape of the view.
        steps: For each of its axes, how far the next entry is in the flattened parameter; None where that has no such form.
        start: The first entry.
        listed: The entries one by one, where there are no steps.
        device: Where the parameter is.
    """

    def __init__(
        self,
        whole: Sequence[int],
        shape: Sequence[int],
        steps: Sequence[int] | None,
        start: int = 0,
        listed: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.whole, self.shape, self.size = tuple(whole), tuple(shape), prod(shape)
        self._steps, self._start, self._listed, self._device = steps, start, listed, device

    @classmethod
    def of(cls, parameter: Tensor) -> "Place":
        """All entries of a parameter, in its own order."""
        return cls(parameter.shape, parameter.shape, _rows(parameter.shape), device=parameter.device)

    def permuted(self, order: Sequence[int]) -> "Place":
        """The place of the view with its axes in another order."""
        shape = [self.shape[i] for i in order]
        if self._steps is None:
            return Place(self.whole, shape, None, listed=self.index.permute(*order), device=self._device)
        return Place(self.whole, shape, [self._steps[i] for i in order], self._start, device=self._device)

    @cached_property
    def index(self) -> Int[Tensor, "..."]:
        """The entries one by one, in the shape of the view."""
        if self._steps is None:
            assert self._listed is not None
            return self._listed.reshape(self.shape)
        index = torch.tensor(self._start, device=self._device)
        for size, step in zip(self.shape, self._steps):
            index = index[..., None] + step * torch.arange(size, device=self._device)
        return index

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Entries and order, without the axes; of listed entries only their number, which does not tell all of them apart."""
        return (self._start, *self._axes) if self._steps is not None else ("listed", self.size)

    @cached_property
    def _axes(self) -> list[tuple[int, int]]:
        """Sizes and steps, with axes that follow on each other as one."""
        axes: list[tuple[int, int]] = []
        for size, step in zip(self.shape, self._steps or ()):
            if axes and size > 1 and axes[-1][1] == size * step:
                axes[-1] = (axes[-1][0] * size, step)
            elif size > 1:
                axes.append((size, step))
        return axes

    @cached_property
    def injective(self) -> bool:
        """Whether no entry is shown twice."""
        reach = 0
        for size, step in sorted(self._axes, key=lambda axis: axis[1]):
            if step <= reach:
                break
            reach += (size - 1) * step
        else:
            if self._steps is not None:
                return True
        return self.index.unique().numel() == self.size

    def fits(self, rows: int) -> bool:
        """Whether these are all entries in their order, and the parameter has so many rows."""
        return self.whole[:1] in ((rows,), ()) and self.size == prod(self.whole) and self == self._as(self.whole, _rows(self.whole))

    def turned(self, c: int, k: int) -> bool:
        """Whether these are all entries of a parameter ``[k c]``, as ``[c k]``."""
        return self.whole[:1] == (k,) and c * k == self.size == prod(self.whole) and self == self._as((c, k), (1, c))

    def _as(self, shape: Sequence[int], steps: Sequence[int]) -> "Place":
        return Place(self.whole, shape, steps, device=self._device)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Place) or self.size != other.size or self.whole != other.whole:
            return False
        if self._steps is not None and other._steps is not None:
            return self.key == other.key
        return torch.equal(self.index.flatten(), other.index.flatten())

    __hash__ = None  # type: ignore[assignment]

    @property
    def reach(self) -> tuple[int, int]:
        """The first and the last entry shown."""
        if self._steps is None:
            return int(self.index.min()), int(self.index.max())
        return self._start, self._start + sum((size - 1) * step for size, step in self._axes)


def together(places: Sequence[Place]) -> list[int]:
    """Group places of one parameter that share entries, directly or by way of others.

    Args:
        places: The places.

    Returns:
        For each of them the number of its group.

    Cost:
        O(entries shown), and no entry is listed where ranges are apart or all places equal.
    """
    group = list(range(len(places)))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = i = group[group[i]]
        return i

    kinds: dict[object, int] = {}  # of places that are surely equal, the first
    for i, place in enumerate(places):
        group[i] = kinds.setdefault(i if place.key[0] == "listed" else place.key, i)
    spans = sorted(((*places[i].reach, i) for i in kinds.values()), reverse=True)
    while spans:
        first, last, _ = spans[-1]
        cluster: list[int] = []
        while spans and spans[-1][0] <= last:
            last = max(last, spans[-1][1])
            cluster.append(spans.pop()[2])
        if len(cluster) == 1:
            continue
        owner = torch.full((last - first + 1,), -1, dtype=torch.int32, device=places[cluster[0]].index.device)
        for i in cluster:
            entries = places[i].index.flatten() - first
            for j in owner[entries].unique().tolist():
                if j >= 0:
                    group[root(j)] = root(i)
            owner[entries] = i
    return [root(i) for i in range(len(places))]


@dataclass(frozen=True)
class View:
    """A tensor that shows entries of a parameter.

    Attributes:
        parameter: The parameter.
        place: Which entries.
        tensor: The view, kept so that its identity is not given away.
        version: Its version when it was taken.
    """

    parameter: Tensor
    place: Place
    tensor: Tensor
    version: int


class Views:
    """The parameters of a model and the views of them that a forward pass takes.

    Args:
        parameters: The parameters.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._known = {id(p): View(p, Place.of(p), p, _version(p)) for p in parameters}

    def __contains__(self, identity: object) -> bool:
        return identity in self._known

    def of(self, t: Tensor) -> View:
        """What a known tensor shows."""
        return self._known[id(t)]

    def overwritten(self, t: Tensor) -> bool:
        """Whether a view was changed in place since it was taken, so that it shows its parameter no more."""
        view = self.of(t)
        return view.parameter is not t and _version(t) != view.version

    def take(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> bool:
        """Remember what a call returns, if that is a view of a known tensor.

        Args:
            function: What was called.
            args: Positional arguments.
            kwargs: Keyword arguments.
            out: What it returned.

        Returns:
            Whether all of it is.
        """
        outs = list(out) if isinstance(out, tuple | list) else [out]
        known = {id(a): a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and id(a) in self}
        if len(known) != 1 or not all(isinstance(t, Tensor) and t.numel() for t in outs):
            return False
        source = self.of(next(iter(known.values())))
        if self.overwritten(source.tensor):
            return False
        if all(t is source.tensor for t in outs):
            return True
        places = [_strided(source, t) for t in outs]
        if None in places:
            places = _listed(function, args, kwargs, source, outs)
        for t, place in zip(outs, places):
            if place is not None:
                self._known[id(t)] = View(source.parameter, place, t, _version(t))
        return bool(places)


def _rows(shape: Sequence[int]) -> list[int]:
    return [prod(shape[i + 1 :]) for i in range(len(shape))]


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _strided(source: View, t: Tensor) -> Place | None:
    """The place of a tensor in its parameter's own memory."""
    p = source.parameter
    same = t.untyped_storage().data_ptr() == p.untyped_storage().data_ptr() and t.dtype == p.dtype and not (t.is_neg() or t.is_conj())
    if not (same and p.is_contiguous() and p.numel()) or _version(p) != source.version:
        return None
    return Place(p.shape, t.shape, t.stride(), int(t.storage_offset() - p.storage_offset()), device=p.device)


def _listed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: View, outs: list[Tensor]) -> list[Place | None]:
    """Places of copied entries: the call is repeated on the numbers of the entries."""
    name = getattr(function, "__name__", "")
    again: Callable[..., Any] | None = _lookup if function is F.embedding else function if name in _REARRANGE else None
    if again is None:
        return []
    index = source.place.index

    def swap(a: Any) -> Any:
        return index if a is source.tensor else a

    try:
        found = again(*map(swap, args), **{key: swap(a) for key, a in kwargs.items()})
    except Exception:
        return []  # it does not take integers
    tables = list(found) if isinstance(found, tuple | list) else [found]
    entries = source.parameter.detach().flatten()
    for table, t in zip(tables, outs):
        if (
            not isinstance(table, Tensor)
            or table.dtype != torch.int64
            or table.shape != t.shape
            or not torch.equal(entries[table], t.detach())
        ):
            return []
    return [Place(source.parameter.shape, table.shape, None, listed=table, device=table.device) for table in tables]


def _lookup(
    ids: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    padded = padding_idx is not None and bool((ids == padding_idx % len(weight)).any())
    return None if padded or max_norm is not None or scale_grad_by_freq else weight[ids]


# Functions that rearrange, repeat or leave out entries and change none.
_REARRANGE = {
    "__get__",
    "__getitem__",
    "broadcast_to",
    "chunk",
    "clone",
    "contiguous",
    "diagonal",
    "expand",
    "expand_as",
    "flatten",
    "flip",
    "gather",
    "index_select",
    "movedim",
    "moveaxis",
    "narrow",
    "permute",
    "ravel",
    "repeat",
    "repeat_interleave",
    "reshape",
    "reshape_as",
    "roll",
    "select",
    "split",
    "split_with_sizes",
    "squeeze",
    "swapaxes",
    "swapdims",
    "t",
    "take",
    "take_along_dim",
    "tensor_split",
    "tile",
    "transpose",
    "unbind",
    "unflatten",
    "unsqueeze",
    "view",
    "view_as",
}
