"""A scope on a model: hooks that exist while it is open, count calls, and hand every selected tensor to ``visit``.

Recording, editing and describing are three scopes. Each owns its handles and removes them in ``finally``, whatever happened;
hooks of the user stay untouched. A hook body returns at once unless its scope is open in the current context, so other
threads that run the same model meanwhile see nothing.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from mechfeat import points
from mechfeat.errors import DtypeError, OptionError, PortError, UnsupportedModelError
from mechfeat.hooks.attention import ExplicitAttention
from mechfeat.hooks.names import HookName, Pattern, unknown_name
from mechfeat.hooks.registration import REGISTRATION, HookTables
from mechfeat.hooks.site import Selection, Site
from mechfeat.hooks.values import leaves, substitute


class ModelScope:
    """Base of the scopes on a model.

    Args:
        site: The model.
        requests: What to visit.
        known_points: Names given to ``mf.point`` in earlier runs, for error messages.
    """

    def __init__(self, site: Site, requests: Sequence[Pattern] | Selection, known_points: Sequence[str] = ()) -> None:
        selection = requests if isinstance(requests, Selection) else Selection(site, requests)
        self.site, self.selection = site, selection
        self.requests, self.wanted, self.pending = selection.requests, selection.wanted, selection.pending
        for pattern in self.pending:
            if pattern.port != "out":  # points have no inputs, so this cannot be one
                raise unknown_name(pattern, [*site.names(), *known_points])
        self.calls: dict[tuple[str, str], int] = {}
        self.points_seen: dict[str, None] = dict.fromkeys(known_points)
        self.attention_seen: dict[str, None] = {}  # modules that called attention
        self.inside = 0  # depth of forward passes of the root that are under way

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
                tables = HookTables()
                handles.callback(tables.remove)
                root = self.site.module
                # First of all, so that a pass which fails in another pre-hook was counted in before it is counted out.
                handles.callback(root.register_forward_pre_hook(self._root_enters, prepend=True).remove)
                for path, sides in self.selection.sides.items():
                    module = self.site.modules[path]
                    if "in" in sides:
                        tables.enters(module, self._enters(path))
                    if "out" in sides:
                        tables.leaves(module, self._leaves(path))
                # Last, so that the root's own output is visited before the pass counts as complete.
                handles.callback(root.register_forward_hook(self._root_leaves).remove)
                handles.callback(root.register_forward_hook(self._root_ends, always_call=True).remove)
            handles.enter_context(points.entered(self))
            if self.selection.asks_attention:
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
        patterns = [p for p in self.selection.point_patterns if p.matches_path(name)]
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
            return self._left(path, out) if points.is_active(self) else None

        return hook

    def _left(self, path: str, out: Any) -> Any:
        new = self._visited(out, path, "out", self.wanted[path])
        return None if new is out else new

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
        patterns = [p for p in self.selection.at(path, side, patterns) if p.call is None or p.call in ("*", str(call))]
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
            raise inside_a_transform(name)
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


def inside_a_transform(name: HookName) -> UnsupportedModelError:
    """The error for a hook point that a transform of torch.func reached.

    Args:
        name: Its name.

    Returns:
        The exception, to be raised by the caller.
    """
    return UnsupportedModelError(
        f"{name} was reached inside a torch.func transform (vmap, grad, jvp), where tensors lack their batch axis. "
        "Record or edit in a plain call of the model."
    )


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
