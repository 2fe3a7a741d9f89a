"""The result of one run: hook name → activation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from mechfeat.errors import (
    AmbiguousCallError,
    GradientError,
    HookNameError,
    OptionError,
    PortError,
    SelectorError,
    ShapeError,
    StaleActivationError,
)
from mechfeat.features import Samples
from mechfeat.hooks.names import HookName, Pattern, numbered, unknown_role

Positions = Literal["all", "mean"] | int | tuple[int, ...] | Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Capture:
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

    Attributes:
        unreached: Hook points that a glob selected and this forward pass did not call.
        skipped: Selected parts that are no tensors, with their type.
        reached_end: False where recording stopped after the last requested hook point.
        notes: What about this run differs from an unrecorded one.
    """

    def __init__(
        self,
        captures: Mapping[HookName, Capture],
        *,
        axes: Callable[[HookName, int], tuple[str, ...]],
        unreached: Sequence[str] = (),
        skipped: Mapping[str, str] = MappingProxyType({}),
        grad: bool = False,
        reached_end: bool = True,
        fired: Mapping[tuple[str, str], int] = MappingProxyType({}),
        alias: Mapping[str, str] = MappingProxyType({}),
        notes: Sequence[str] = (),
        roles: Callable[[], Mapping[str, Sequence[str]]] = dict,
    ) -> None:
        self._calls: dict[tuple[str, str], int] = {}
        for name in captures:
            self._calls[name.path, name.port] = self._calls.get((name.path, name.port), 0) + 1
        # Calls that were not recorded count as well: "relu" is ambiguous where relu#0 alone was asked for and relu fires twice.
        self._fired = {(n.path, n.port): max(self._calls[n.path, n.port], fired.get((n.path, n.side), 0)) for n in captures}
        self._names = {str(shown): name for name, shown in numbered(captures, self._fired)}
        self._captures = {shown: captures[name] for shown, name in self._names.items()}
        self._axes = axes  # asked when needed: naming the axes of every point would cost as much as recording it
        self._roles = roles  # likewise
        self._alias = dict(alias)
        self.unreached, self.skipped, self.reached_end = tuple(unreached), MappingProxyType(dict(skipped)), reached_end
        self.notes, self._grad = tuple(notes), grad

    def _find(self, key: str | tuple[str, int]) -> tuple[str, Capture]:
        if isinstance(key, tuple):
            return self._numbered(*key)
        text = key
        if text in self._captures:
            return text, self._captures[text]
        resolved = self._resolved(text)
        if resolved.members:
            return self._one(text, self._matching(resolved))
        name = HookName.parse(text)
        name = name._replace(path=self._alias.get(name.path, name.path))
        ports = [port for path, port in self._calls if path == name.path and (port == name.port or port.startswith(name.port + "."))]
        if not ports:
            raise self._absent(text)
        if len(ports) > 1:
            raise PortError(text, f"it holds {len(ports)} tensors", [str(HookName(name.path, p)) for p in ports])
        fired = self._fired[name.path, ports[0]]
        if name.call is None and fired > 1:
            raise AmbiguousCallError(str(HookName(name.path, ports[0])), fired)
        key = str(HookName(name.path, ports[0], name.call if fired > 1 or name.call else None))
        if key not in self._captures:
            raise self._absent(text)
        return key, self._captures[key]

    def _absent(self, text: str) -> HookNameError:
        error = HookNameError(text, list(self._captures))
        error.args = (error.args[0].replace("in this model", "recorded in this cache").replace("`model.hook_names()`", "`list(cache)`"),)
        return error

    def _resolved(self, text: str) -> Pattern:
        """A request, a role in it as the set of hook points it stands for."""
        pattern = Pattern.parse(text)
        if pattern.role is not None and all(path != pattern.path for path, _ in self._calls):  # a module may be called like a role
            roles = self._roles()
            if pattern.role not in roles:
                raise unknown_role(pattern, roles)
            return pattern.resolved(roles[pattern.role])
        return replace(pattern, path=self._alias.get(pattern.path, pattern.path))

    def _matching(self, pattern: Pattern) -> list[str]:
        return [shown for shown, name in self._names.items() if pattern.selects(name)]

    def _one(self, text: str, found: Sequence[str]) -> tuple[str, Capture]:
        if not found:
            raise self._absent(text)
        if len(found) > 1:
            raise PortError(text, f"{len(found)} recorded hook points play this role, which `cache.select` gives together", found)
        return found[0], self._captures[found[0]]

    def _numbered(self, text: str, i: int) -> tuple[str, Capture]:
        pattern = self._resolved(text)
        if not pattern.members:
            raise OptionError("role", text, [f"@{role}" for role in self._roles()])
        if not -len(pattern.members) <= i < len(pattern.members):
            raise OptionError(f"cache[{text!r}, i], i", i, range(-len(pattern.members), len(pattern.members)))
        return self._one(f"{text}, {i}", self._matching(replace(pattern, members=(pattern.members[i],))))

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
        found = self._matching(self._resolved(request))
        if not found:
            raise self._absent(request)
        return {name: self[name] for name in found}

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
        return iter(self._captures)

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
        rows = [f"  {name}  {' '.join(f'{a}={s}' for a, s in zip(self.axes(name), c.value.shape))}" for name, c in self._captures.items()]
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
        return self._axes(self._names[key], capture.value.ndim)

    def calls(self, name: str) -> int:
        """How many calls of a hook point were recorded.

        Args:
            name: Hook name without call index.

        Returns:
            The number, 0 for a hook point that is not in the cache.
        """
        parsed = HookName.parse(name)
        return self._calls.get((self._alias.get(parsed.path, parsed.path), parsed.port), 0)

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
        chosen = [self._find(n)[0] for n in names] if names is not None else [n for n, c in self._captures.items() if c.value.requires_grad]
        without = [n for n in chosen if not self._captures[n].value.requires_grad]
        if without:
            raise GradientError(f"{', '.join(map(repr, without))} hold {self._captures[without[0]].value.dtype}, which has no gradient.")
        values = [self[n] for n in chosen]
        found = torch.autograd.grad(scalar.reshape(()), values, allow_unused=True, retain_graph=retain_graph)
        return {n: torch.zeros_like(v) if g is None else g for n, v, g in zip(chosen, values, found)}
