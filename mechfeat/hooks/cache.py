"""The result of one run: hook name → activation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mechfeat.errors import GradientError, OptionError, SelectorError, ShapeError, StaleActivationError
from mechfeat.features import Samples
from mechfeat.hooks.index import CacheIndex
from mechfeat.hooks.names import HookName

Positions = Literal["all", "mean"] | int | tuple[int, ...] | Callable[[Tensor], Tensor]


class Capture(NamedTuple):
    """One recorded tensor.

    Attributes:
        value: The activation: detached and sharing memory, a copy, or (``grad=True``) the node of the graph.
        version: Its version number when it was recorded; None where it cannot be overwritten or has no version number.
    """

    value: Tensor
    version: int | None

    @property
    def stale(self) -> bool:
        """Whether it was overwritten since."""
        return self.version is not None and self.value._version != self.version


class ActivationCache(Mapping[str, Tensor]):
    """Immutable mapping from hook names to activations, in the order they passed.

    A hook point that fired once is listed without call index, one that fired more often as ``relu#0``, ``relu#1``, ....

    ``cache["@embed"]`` is the activation that plays a role, where one alone was recorded, and ``cache["@resid_post", 3]`` the one at
    the fourth of the role's hook points in the model (negative from the end), whichever others were recorded.

    Args:
        index: Names of the activations.
        captures: The activations, in the same order, each with its version as in :class:`Capture`.
        axes: Names the axes of an activation.
        unreached: As below, and so the others.
        skipped: See below.
        grad: Whether the graph was kept.
        reached_end: See below.
        notes: See below.

    Attributes:
        unreached: Hook points that a glob selected and this forward pass did not call.
        skipped: Selected parts that are no tensors, with their type.
        reached_end: False where recording stopped after the last requested hook point.
        notes: What about this run differs from an unrecorded one.
    """

    def __init__(
        self,
        index: CacheIndex,
        captures: Sequence[tuple[Tensor, int | None]],
        *,
        axes: Callable[[HookName, int], tuple[str, ...]],
        unreached: Sequence[str] = (),
        skipped: Mapping[str, str] | None = None,
        grad: bool = False,
        reached_end: bool = True,
        notes: Sequence[str] = (),
    ) -> None:
        self._index, self._captures = index, captures
        self._axes = axes  # asked when needed: naming the axes of every point would cost as much as recording it
        self.unreached, self.skipped, self.reached_end = tuple(unreached), MappingProxyType(dict(skipped or {})), reached_end
        self.notes, self._grad = tuple(notes), grad

    def _find(self, key: str | tuple[str, int]) -> tuple[str, Capture]:
        shown = self._index.find(key)
        return shown, Capture(*self._captures[self._index.places[shown]])

    def select(self, request: str) -> dict[str, Tensor]:
        """Activations of a role, or of a glob.

        Args:
            request: A role such as ``@resid_post``, a glob, or a hook name with or without call.

        Returns:
            Hook name → activation, in the order they passed.

        Raises:
            HookNameError: Nothing recorded fits, or the model has no such role.
            StaleActivationError: One was overwritten since it was recorded.

        Example:
            >>> from mechfeat import HookedModel
            >>> cache = HookedModel(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())).record(torch.ones(4, 2))
            >>> list(cache.select("@post")), list(cache.select("*"))
            (['1'], ['0', '1'])
        """
        return {name: self[name] for name in self._index.matching(request)}

    def stacked(self, request: str) -> Tensor:
        """Activations of a role or a glob along a first axis, such as the residual stream after each layer.

        Args:
            request: As in :meth:`select`.

        Returns:
            ``[layer ...]`` in the order they passed: a copy, with its graph where the run kept one.

        Raises:
            ShapeError: They differ in shape.
        """
        found = self.select(request)
        shapes = {name: list(value.shape) for name, value in found.items()}
        if len({value.shape for value in found.values()}) > 1:
            raise ShapeError(f"{request!r} cannot be stacked: the shapes are {shapes}. Select activations of one shape with a glob.")
        return torch.stack(list(found.values()))

    def __getitem__(self, name: str | tuple[str, int]) -> Tensor:
        key, capture = self._find(name)
        if capture.stale:
            raise StaleActivationError([key])
        return capture.value

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.places)

    def __len__(self) -> int:
        return len(self._captures)

    def __contains__(self, name: object) -> bool:
        try:
            self._find(name if isinstance(name, tuple) else str(name))
        except LookupError:
            return False
        return True

    def get(self, name: str, default: Any = None) -> Any:
        """The activation, or a default where the name addresses none.

        Args:
            name: Hook name.
            default: What to return then.

        Returns:
            The activation or the default.
        """
        return self[name] if name in self else default  # noqa: SIM401 - this is the get

    def __repr__(self) -> str:
        rows = [
            f"  {name}  {' '.join(f'{a}={s}' for a, s in zip(self.axes(name), value.shape))}"
            for name, (value, _) in zip(self, self._captures)
        ]
        notes = [f"  not reached: {', '.join(self.unreached)}"] if self.unreached else []
        notes += [f"  note: {note}" for note in self.notes]
        return "\n".join([f"ActivationCache of {len(self)} hook points", *rows, *notes])

    def axes(self, name: str) -> tuple[str, ...]:
        """Names of the axes of an activation.

        Args:
            name: Hook name.

        Returns:
            One name an axis, such as ``("sample", "channel", "height", "width")``.
        """
        key, capture = self._find(name)
        return self._axes(self._index.names[self._index.places[key]], capture.value.ndim)

    def calls(self, name: str) -> int:
        """How many calls of a hook point were recorded.

        Args:
            name: Hook name without call index.

        Returns:
            The number, 0 for a hook point that is not in the cache.
        """
        parsed = HookName.parse(name)
        return self._index.calls.get((self._index.path(parsed.path), parsed.port), 0)

    def samples(self, name: str, positions: Positions = "all") -> Samples:
        """The activation as a table with one row a sample and one column a channel.

        The same call serves convolutions, attention and MLPs: every axis but ``sample`` and ``channel`` is a position.

        Args:
            name: Hook name.
            positions: ``"all"`` for one row a position, ``"mean"`` for the mean over positions, an index (one a position
                axis; negative from the end), or a function from ``[sample *position channel]`` to ``[sample channel]``.

        Returns:
            Samples that know which input each row came from.

        Raises:
            SelectorError: The axes are not known to hold a sample and a channel, or an index does not fit.
            OptionError: ``positions`` is none of the above.
        """
        key, capture = self._find(name)
        axes = self.axes(key)
        if "sample" not in axes or "channel" not in axes:
            raise SelectorError(
                f"{key!r} has axes {axes}, of which none is known to be the channel. Name them: "
                f"HookedModel(net, axes={{{str(HookName.parse(key).path)!r}: ('sample', ..., 'channel')}})."
            )
        value = self[key]
        value = value.movedim((axes.index("sample"), axes.index("channel")), (0, -1))
        spaces = tuple(a for a in axes if a not in ("sample", "channel"))
        n = value.shape[0]
        if callable(positions):
            value = positions(value)
            if value.ndim != 2 or len(value) != n:
                raise SelectorError(
                    f"positions() gave shape {tuple(value.shape)} for {key!r}; it must give [sample channel] with {n} samples."
                )
        elif positions == "mean":
            value = value.flatten(1, -2).mean(1) if spaces else value
        elif positions == "all":
            per = value[..., 0].numel() // max(n, 1)
            shape = tuple(capture.value.shape) if axes[0] == "sample" else ()
            rows = torch.arange(n, device=value.device).repeat_interleave(per)
            return Samples(value.reshape(-1, value.shape[-1]), rows, key, n, axes, shape)
        elif isinstance(positions, int | tuple):
            index: tuple[int, ...] = (positions,) if isinstance(positions, int) else positions
            sizes = value.shape[1:-1]
            if len(index) != len(sizes) or any(not -s <= i < s for i, s in zip(index, sizes)):
                raise SelectorError(f"positions={positions!r} does not fit {key!r}, whose position axes are {dict(zip(spaces, sizes))}.")
            for i in index:  # each takes the position axis that is then first
                value = value.select(1, i)
        else:
            raise OptionError("positions", positions, ("all", "mean", "an index", "a tuple of indices", "a function"))
        return Samples(value, torch.arange(n, device=value.device), key, n, axes)

    def gradients(self, scalar: Tensor, *, names: Sequence[str] | None = None, retain_graph: bool = False) -> dict[str, Tensor]:
        """Gradient of a scalar with respect to recorded activations.

        At an output, the gradient through everything downstream; at an input, through that module alone.

        Args:
            scalar: Computed from the model's output of the same run.
            names: Hook names; every floating-point activation by default.
            retain_graph: Keep the graph, to ask again.

        Returns:
            Hook name → gradient, in units of the scalar per activation unit; zero where the scalar does not depend on it.

        Raises:
            GradientError: The run did not keep its graph, or an activation has no gradient.
            ShapeError: ``scalar`` has more than one element.
        """
        if not self._grad:
            raise GradientError("This cache holds values without graph. Record with grad=True to ask for gradients.")
        if scalar.numel() != 1:
            raise ShapeError(
                f"gradients() needs a scalar and was given shape {tuple(scalar.shape)}. "
                "Sum or select first, for instance logits[:, 3].sum()."
            )
        if not scalar.requires_grad:
            raise GradientError("The scalar does not depend on anything recorded in this run. Compute it from the output of the same run.")
        chosen = (
            [self._find(n)[0] for n in names]
            if names is not None
            else [n for n, (value, _) in zip(self, self._captures) if value.requires_grad]
        )
        without = [n for n in chosen if not self._find(n)[1].value.requires_grad]
        if without:
            raise GradientError(f"{', '.join(map(repr, without))} hold {self[without[0]].dtype}, which has no gradient.")
        values = [self[n] for n in chosen]
        found = torch.autograd.grad(scalar.reshape(()), values, allow_unused=True, retain_graph=retain_graph)
        return {n: torch.zeros_like(v) if g is None else g for n, v, g in zip(chosen, values, found)}
