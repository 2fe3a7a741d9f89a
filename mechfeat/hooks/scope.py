"""A scope on a model: hooks that exist while it is open, count calls, and hand every selected tensor to ``visit``.

Recording, editing and describing are three scopes. Each owns its handles and removes them in ``finally``, whatever happened;
hooks of the user stay untouched. A hook body returns at once unless its scope is open in the current context, so other
threads that run the same model meanwhile see nothing.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from mechfeat import points
from mechfeat.errors import DtypeError, OptionError, PortError, UnsupportedModelError
from mechfeat.hooks.adapters import adapter_for, aliases
from mechfeat.hooks.attention import ExplicitAttention
from mechfeat.hooks.axes import AxisNamer
from mechfeat.hooks.names import ATTENTION_PORTS, HookName, Pattern, split_unknown, unknown_name, unknown_role
from mechfeat.hooks.registration import REGISTRATION
from mechfeat.hooks.values import leaves, substitute


class Site:
    """The module paths of a model, read afresh for each run because modules may be added between runs.

    Args:
        module: The model.
        axes: Axis names set by the user.
    """

    def __init__(self, module: nn.Module, axes: Mapping[str, tuple[str, ...]]) -> None:
        self.module = module
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


class ModelScope:
    """Base of the scopes on a model.

    Args:
        site: The model.
        requests: What to visit.
        known_points: Names given to ``mf.point`` in earlier runs, for error messages.
    """

    def __init__(self, site: Site, requests: Sequence[Pattern], known_points: Sequence[str] = ()) -> None:
        self.site = site
        self.requests = [site.canonical(p) for p in requests]
        self.found, self.pending = split_unknown(self.requests, list(site.modules))
        for pattern in self.pending:
            if pattern.port != "out":  # points have no inputs, so this cannot be one
                raise unknown_name(pattern, [*site.names(), *known_points])
        self.point_patterns = [p for p in self.requests if p in self.pending or "*" in p.path or p.members]
        self.wanted: dict[str, list[Pattern]] = {}
        for pattern, paths in self.found:
            for path in paths:
                self.wanted.setdefault(path, []).append(pattern)
        self._by_side: dict[tuple[str, str], list[Pattern]] = {}
        self.calls: dict[tuple[str, str], int] = {}
        self.points_seen: dict[str, None] = dict.fromkeys(known_points)
        self.attention_seen: dict[str, None] = {}  # modules that called attention
        self.inside = 0  # depth of forward passes of the root that are under way

    def sides(self, path: str) -> set[str]:
        """The sides of a module that are asked for: ``in``, ``out`` and attention ports.

        Args:
            path: Its path.

        Returns:
            The sides.
        """
        return {side for p in self.wanted[path] for side in p.sides}

    def visit(self, x: Tensor, name: HookName, patterns: Sequence[Pattern]) -> Tensor:
        """Take a tensor that was asked for.

        Args:
            x: The tensor.
            name: Its full name, call included.
            patterns: The requests that select it.

        Returns:
            ``x``, or what takes its place.
        """
        raise NotImplementedError

    def skip(self, value: Any, name: HookName) -> None:
        """Take note of a part that is no tensor."""

    def passed(self, path: str, side: str) -> None:
        """Called after a hook point was handled."""

    def started(self) -> None:
        """Called before a forward pass of the whole model."""

    def completed(self) -> None:
        """Called after a forward pass of the whole model has ended without exception."""

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hooks in place and scope active until the block ends."""
        with ExitStack() as handles:
            with REGISTRATION:
                root = self.site.module
                # First of all, so that a pass which fails in another pre-hook was counted in before it is counted out.
                handles.callback(root.register_forward_pre_hook(self._root_enters, prepend=True).remove)
                for path in self.wanted:
                    module, sides = self.site.modules[path], self.sides(path)
                    if "in" in sides:
                        handles.callback(module.register_forward_pre_hook(self._enters(path), with_kwargs=True).remove)
                    if "out" in sides:
                        handles.callback(module.register_forward_hook(self._leaves(path)).remove)
                # Last, so that the root's own output is visited before the pass counts as complete.
                handles.callback(root.register_forward_hook(self._root_leaves).remove)
                handles.callback(root.register_forward_hook(self._root_ends, always_call=True).remove)
            handles.enter_context(points.entered(self))
            if any(side in ATTENTION_PORTS for p in self.requests for side in p.sides):
                handles.enter_context(ExplicitAttention(self.site.module, self).installed())
            yield

    def at_point(self, x: Tensor, name: str, within: nn.Module | None) -> Tensor:
        """Handle a call of ``mf.point``."""
        if not self.inside:
            return x
        if within is not None:
            parent = self.site.path_of.get(id(within))
            if parent is None:  # the point belongs to another model that runs inside this one
                return x
            name = f"{parent}.{name}" if parent else name
        if name in self.site.modules or name in self.site.alias:
            raise OptionError("mf.point name", name, ("a name that is not a module path of the model",))
        if not isinstance(x, Tensor):
            raise DtypeError(f"mf.point(..., {name!r}) was given a {type(x).__name__}. It takes one tensor.")
        self.points_seen[name] = None
        patterns = [p for p in self.point_patterns if p.matches_path(name)]
        return self._visited(x, name, "out", patterns) if patterns else x

    def at_attention(self, x: Tensor, port: str, owner: nn.Module) -> Tensor:
        """Handle a step of attention, called by ``owner``."""
        path = self.site.path_of.get(id(owner))
        if path is None or not self.inside:
            return x
        self.attention_seen[path] = None
        return self._visited(x, path, port, self.wanted.get(path, ()))

    def wants_result(self, owner: nn.Module) -> bool:
        """Whether the parts of the heads in the output of ``owner`` were asked for: they are computed only then."""
        return any("result" in p.sides for p in self.wanted.get(self.site.path_of.get(id(owner), " "), ()))

    def unmatched(self) -> list[Pattern]:
        """Requests that match neither a module nor any point seen so far."""
        return [p for p in self.pending if not any(p.matches_path(n) for n in self.points_seen)]

    def known(self) -> list[str]:
        """All hook names known by now, points included."""
        return [*self.site.names(), *self.points_seen]

    # --- hook bodies

    def _root_enters(self, module: nn.Module, args: Any) -> None:
        if points.is_active(self):
            if self.inside:  # a recursive call, or what an interrupt left behind: torch counts out passes that end in an Exception alone
                self.inside = _under_way(module) - 1
            if not self.inside:
                self.calls.clear()
                self.started()
            self.inside += 1

    def _root_leaves(self, module: nn.Module, args: Any, out: Any) -> None:
        if points.is_active(self) and self.inside == 1:
            self.completed()

    def _root_ends(self, module: nn.Module, args: Any, out: Any) -> None:
        if points.is_active(self):
            self.inside -= 1

    def _leaves(self, path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, out: Any) -> Any:
            if not points.is_active(self):
                return None
            new = self._visited(out, path, "out", self.wanted[path])
            return None if new is out else new

        return hook

    def _enters(self, path: str) -> Callable[..., Any]:
        # Without kwargs where another thread runs this hook while it is registered or removed: torch keeps the two tables apart.
        def hook(module: nn.Module, args: Any, kwargs: Any = None) -> Any:
            if not points.is_active(self):
                return None
            # The arguments are one value: in.0, in.1, ... by place, in.name by keyword; a single tensor is "in" itself.
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                new = self._visited(args[0], path, "in", self.wanted[path])
                return None if new is args[0] else ((new,), {})
            both = {**{str(i): a for i, a in enumerate(args)}, **kwargs}
            new = self._visited(both, path, "in", self.wanted[path])
            return None if new is both else (tuple(new[str(i)] for i in range(len(args))), {k: new[k] for k in kwargs})

        return hook

    def _visited(self, value: Any, path: str, side: str, patterns: Sequence[Pattern]) -> Any:
        call = self.calls.get((path, side), 0)
        self.calls[path, side] = call + 1
        mine = self._by_side.get((path, side))
        if mine is None:
            mine = self._by_side[path, side] = [p for p in patterns if side in p.sides]
        patterns = [p for p in mine if p.call is None or p.call in ("*", str(call))]
        if len(patterns) == 1 and type(value) is Tensor and patterns[0].port in (side, "*") and not patterns[0].members:
            value = self._take(value, HookName(path, side, call), patterns)  # by far the most common case, without the search for parts
        elif patterns:
            changed: dict[str, Tensor] = {}
            parts = list(leaves(value, side))
            tensors = [place for place, part in parts if isinstance(part, Tensor)]
            for pattern in patterns:
                if not pattern.is_glob:
                    _check_port(pattern, side, parts, tensors)
            for place, part in parts:
                name = HookName(path, place, call)
                chosen = [p for p in patterns if p.selects_port(place, path)]
                if not chosen:
                    continue
                if not isinstance(part, Tensor):
                    self.skip(part, name)
                    continue
                new = self._take(part, name, chosen)
                if new is not part:
                    changed[place] = new
            if changed:
                value = substitute(value, changed, side)
        self.passed(path, side)
        return value

    def _take(self, x: Tensor, name: HookName, patterns: Sequence[Pattern]) -> Tensor:
        """Visit a tensor, after a look at what kind it is."""
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            raise UnsupportedModelError(
                f"{name} was reached inside a torch.func transform (vmap, grad, jvp), where tensors lack their batch axis. "
                "Record or edit in a plain call of the model."
            )
        if not x.is_nested:
            return self.visit(x, name, patterns)
        # What torch's encoder uses inside for padded batches has no shape; it is seen as the dense tensor with zeros as padding.
        dense = x.to_padded_tensor(0.0)
        if self.visit(dense, name, patterns) is not dense:
            raise UnsupportedModelError(
                f"{name} holds a nested tensor, which can be recorded without graph, but not edited. "
                "Build the encoder with enable_nested_tensor=False."
            )
        return x


def _under_way(module: nn.Module) -> int:
    """How many calls of a module are on the stack."""
    count = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        count += frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals["self"] is module
        frame = frame.f_back
    return count


def _check_port(pattern: Pattern, side: str, parts: Sequence[tuple[str, Any]], tensors: Sequence[str]) -> None:
    """A literal port must address exactly one tensor."""
    asked = side + pattern.port[len(pattern.port.partition(".")[0]) :]
    hits = [t for t in tensors if pattern.selects_port(t)]
    if len(hits) == 1:
        return
    kinds = ", ".join(f"{place}: {type(part).__name__}" for place, part in parts) or "nothing"
    whole = f"{pattern.path}:{asked}" if asked != "out" else pattern.path or ":out"
    raise PortError(whole, f"there {'is' if len(parts) == 1 else 'are'} {kinds}", [str(HookName(pattern.path, t)) for t in hits or tensors])
