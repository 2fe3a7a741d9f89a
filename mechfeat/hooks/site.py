"""The modules of a model by path, and what a request selects among them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from mechfeat.hooks.adapters import adapter_for, aliases
from mechfeat.hooks.axes import AxisNamer
from mechfeat.hooks.index import CacheIndex
from mechfeat.hooks.names import ATTENTION_PORTS, HookName, Pattern, split_unknown, unknown_role


def structure(module: nn.Module) -> tuple[list[str], list[int], list[nn.Module | None]]:
    """The modules inside a module and how they hang together, told as quickly as possible, to be compared.

    Args:
        module: The model.

    Returns:
        Names, numbers of children and modules, breadth first. Modules compare by identity.
    """
    names: list[str] = []
    sizes: list[int] = []
    modules: list[nn.Module | None] = [module]
    for m in modules:  # which grows meanwhile
        if m is not None:
            children = m._modules
            sizes.append(len(children))
            if children:
                names.extend(children)
                modules.extend(children.values())
    return names, sizes, modules


@dataclass(frozen=True, eq=False)
class Usual:
    """What a complete run recorded, where the log held all of it: a run that logs the same names finishes without working it out again.

    Attributes:
        names: Names in the log.
        index: Hook names of the cache.
        unreached: Hook points that were not called.
    """

    names: tuple[HookName, ...]
    index: CacheIndex
    unreached: tuple[str, ...]


class Selection:
    """What a request selects on a model: worked out once, and used by every run that asks the same of it.

    Args:
        site: The model.
        requests: What to visit.
    """

    def __init__(self, site: "Site", requests: Sequence[Pattern]) -> None:
        self.requests = [site.canonical(p) for p in requests]
        found, self.pending = split_unknown(self.requests, list(site.modules))
        self.point_patterns = [p for p in self.requests if p in self.pending or "*" in p.path or p.members]
        self.wanted: dict[str, list[Pattern]] = {}
        for pattern, paths in found:
            for path in paths:
                self.wanted.setdefault(path, []).append(pattern)
        self.sides = {path: {side for p in asked for side in p.sides} for path, asked in self.wanted.items()}
        self.asks_attention = any(side in ATTENTION_PORTS for p in self.requests for side in p.sides)
        self.usual: dict[object, Usual] = {}  # by kind of input
        self.index: CacheIndex | None = None  # of the last run
        self._by_side: dict[tuple[str, str], list[Pattern]] = {}

    def at(self, path: str, side: str, patterns: Sequence[Pattern]) -> list[Pattern]:
        """Those of some requests that ask for a side.

        Args:
            path: Path of a module or point.
            side: ``in``, ``out`` or an attention port.
            patterns: The requests that ask for the path.

        Returns:
            The requests.
        """
        mine = self._by_side.get((path, side))
        if mine is None:
            mine = self._by_side[path, side] = [p for p in patterns if side in p.sides]
        return mine

    @cached_property
    def plain(self) -> dict[str, HookName]:
        """Modules of which nothing but the whole output is asked, at every call: path → name of the first one."""
        return {
            path: HookName(path, "out", 0)
            for path, (first, *others) in self.wanted.items()
            if not others and self.sides[path] == {"out"} and first.port in ("out", "*") and first.call in (None, "*") and not first.members
        }


class Site:
    """The module paths of a model, and what follows from them. It serves all runs between which the modules stay the same.

    Args:
        module: The model.
        axes: Axis names set by the user.
    """

    def __init__(self, module: nn.Module, axes: Mapping[str, tuple[str, ...]]) -> None:
        self.module = module
        self._structure = structure(module)
        self.modules: dict[str, nn.Module] = {}
        self.path_of: dict[int, str] = {}
        self.alias: dict[str, str] = {}
        for path, child in module.named_modules(remove_duplicate=False):
            if isinstance(child, nn.ModuleList | nn.ModuleDict):
                continue
            first = self.path_of.setdefault(id(child), path)
            if first == path:
                self.modules[path] = child
            else:
                self.alias[path] = first
        self.alias.update({name: path for name, path in aliases(module, self.path_of).items() if name not in self.modules})
        self._axes = dict(axes)
        self._namer: AxisNamer | None = None
        self._roles: dict[str, tuple[str, ...]] | None = None
        self.selections: dict[object, Selection] = {}

    def is_current(self) -> bool:
        """Whether the model still has these modules under these names; they may be added and exchanged between runs."""
        return structure(self.module) == self._structure

    @cached_property
    def encoder_layers(self) -> tuple[nn.Module, ...]:
        """Modules of the kind that torch runs fused in evaluation mode."""
        return tuple(m for m in self.modules.values() if isinstance(m, nn.TransformerEncoderLayer))

    def selection(self, key: object, requests: Callable[[], Sequence[Pattern]]) -> Selection:
        """What a request selects, worked out at its first use.

        Args:
            key: Stands for the request; None where nothing does.
            requests: The request.

        Returns:
            The selection.
        """
        found = self.selections.get(key) if key is not None else None
        if found is None:
            found = Selection(self, requests())
            if key is not None:
                if len(self.selections) >= 256:  # a sweep over thousands of hook points needs none of them twice
                    self.selections.clear()
                self.selections[key] = found
        return found

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """Role → hook names, for a model of a known family; else empty."""
        if self._roles is None:
            self._roles = adapter_for(self.module).roles
        return self._roles

    def axes(self, name: HookName, ndim: int) -> tuple[str, ...]:
        """Axis names of an activation.

        Args:
            name: Its hook name.
            ndim: Its number of axes.

        Returns:
            One name an axis.
        """
        if self._namer is None:
            self._namer = AxisNamer(self.modules, self._axes)
        return self._namer(name.path, name.port, ndim)

    def canonical(self, pattern: Pattern) -> Pattern:
        """The request with a role resolved, and a second path of a shared module replaced by its first.

        Args:
            pattern: A request.

        Returns:
            The request under the paths that hook names use.

        Raises:
            HookNameError: The model has no such role.
        """
        if pattern.role is not None and not pattern.members and pattern.path not in self.modules:
            if pattern.role not in self.roles:
                raise unknown_role(pattern, self.roles)
            return pattern.resolved(self.roles[pattern.role])
        first = self.alias.get(pattern.path)
        return pattern if first is None else replace(pattern, path=first)

    def names(self) -> list[str]:
        """Hook names of the outputs of all modules, in order of definition."""
        return [str(HookName(path)) for path in self.modules]
