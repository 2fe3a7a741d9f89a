"""Recording: the scope that keeps what passes."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from mechfeat import points
from mechfeat.errors import GradientError, HookNotReachedError, PortError, StaleActivationError
from mechfeat.hooks.attention import NOTE
from mechfeat.hooks.cache import ActivationCache, Capture
from mechfeat.hooks.index import CacheIndex
from mechfeat.hooks.names import ATTENTION_PORTS, HookName, Pattern, numbered, unknown_name
from mechfeat.hooks.scope import ModelScope, inside_a_transform
from mechfeat.hooks.site import Selection, Site, Usual

_version, _is_nested = attrgetter("_version"), attrgetter("is_nested")
_NONE: frozenset[str] = frozenset()


class Stopped(BaseException):
    """Unwinds the forward pass after the last requested hook point.

    A BaseException, so that ``except Exception`` in a model lets it through.
    """


class Memory:
    """What earlier complete runs of a model have shown. It only ever saves work; a run without it is right too.

    Attributes:
        calls: By kind of input: how often each hook point fires.
        overwritten: By hook point and mode: whether its value is overwritten in place later in the pass.
        lasting: By mode: paths of modules whose output is one tensor that is not overwritten.
        points: Names given to ``mf.point``.
    """

    def __init__(self) -> None:
        self.calls: dict[object, dict[tuple[str, str], int]] = {}
        self.overwritten: dict[tuple[object, ...], bool] = {}
        self.lasting: dict[tuple[bool, bool], set[str]] = {}
        self.points: dict[str, None] = {}


class Log:
    """What passed by modules of which nothing but their whole, lasting output is asked: most of what is recorded in practice.

    A hook body here is one line, and everything else is done for all of them at once after the pass; on small layers the hooks
    would otherwise cost more than the network.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[HookName, Tensor, int]] = []
        self.add = self._entries.append

    def __bool__(self) -> bool:
        return bool(self._entries)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def taken(self) -> tuple[tuple[HookName, ...], tuple[Tensor, ...], tuple[int | None, ...]]:
        """The entries, whose values may still be part of a graph; the log is empty afterwards.

        Returns:
            Names, values and version numbers; a nested value as the dense copy with zeros as padding, which has none.

        Raises:
            UnsupportedModelError: A value is inside a transform of torch.func.
        """
        if not self._entries:
            return (), (), ()
        names, values, versions = zip(*self._entries)
        self._entries.clear()
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor
        if any(map(wrapped, values)):
            raise inside_a_transform(next(n for n, x in zip(names, values) if wrapped(x)))
        if any(map(_is_nested, values)):
            versions = tuple(None if x.is_nested else v for x, v in zip(values, versions))
            values = tuple(x.to_padded_tensor(0.0) if x.is_nested else x for x in values)
        return names, values, versions


class Recorder(ModelScope):
    """Keeps the selected activations of one forward pass.

    Args:
        site: The model.
        selection: What to record.
        memory: What earlier runs have shown.
        grad: Keep the graph.
        clone: Copy every value (True), none (False), or those not known to stay as they are (None).
        signature: Kind of input, under which call counts are remembered.
        stop: End the pass after the last requested call, where it is known which that is.
    """

    def __init__(
        self,
        site: Site,
        selection: Selection,
        memory: Memory,
        *,
        grad: bool,
        clone: bool | None,
        signature: object,
        stop: bool,
    ) -> None:
        super().__init__(site, selection, tuple(memory.points))
        self._log = Log()
        self._memory, self._grad, self._clone, self._stop = memory, grad, clone, stop
        self.restart(signature)

    def restart(self, signature: object) -> None:
        """Ready for a new pass.

        Args:
            signature: Kind of its input.

        Raises:
            GradientError: ``grad=True`` while gradients are switched off.
        """
        self.forget()
        self._signature = signature
        self._to_come = self._calls_until_done(self._memory.calls.get(signature, {})) if self._stop else None
        self._mode = (self.site.module.training, torch.is_grad_enabled())
        plain = self._to_come is None and self._clone is None and not self._grad and not torch.is_inference_mode_enabled()
        self._lasting = self._memory.lasting.get(self._mode, _NONE) if plain else _NONE
        if self._grad and not torch.is_grad_enabled():
            raise GradientError("grad=True was asked for while gradients are switched off. Leave the no_grad or inference_mode block.")

    def forget(self) -> None:
        """Let go of everything that the last pass has shown."""
        self._log.clear()
        self.captures: dict[HookName, Capture] = {}
        self.skipped: dict[HookName, str] = {}
        self._watched: dict[HookName, tuple[Tensor, int]] = {}
        self._reached: set[int] = set()  # by identity: hashing a request at every point would cost more than recording it
        self.attention_seen.clear()
        self.ended = False
        self.calls.clear()
        self.inside = 0

    def run(self, call: Callable[[], Any]) -> Any:
        """One pass, stopped where nothing more is to come.

        Args:
            call: Calls the model.

        Returns:
            What the model returned; None where it was stopped.
        """
        outer = [(s, s.inside) for s in points.active() if isinstance(s, ModelScope) and s is not self]
        try:
            return call()
        except Stopped:
            for scope, depth in outer:  # the unwound pass never reached the end of the root, where they count it out
                scope.inside = depth
            return None

    def _calls_until_done(self, counts: dict[tuple[str, str], int]) -> dict[tuple[str, str], int] | None:
        """How often each requested hook point will fire, or None where that is not known and the pass must run to its end."""
        if "" in self.wanted:  # the output of the model is the last that passes
            return None
        left: dict[tuple[str, str], int] = {}
        for pattern in self.requests:
            paths = [p for p, ps in self.wanted.items() if pattern in ps]
            if pattern in self.selection.point_patterns:
                if not counts and "*" in pattern.path:
                    return None
                paths += [p for p in tuple(self._memory.points) if pattern.matches_path(p)]
            for path in paths or [pattern.path]:
                for side in pattern.sides:
                    if pattern.call not in (None, "*"):
                        need = int(pattern.call or 0) + 1
                    elif (path, side) in counts:
                        need = counts[path, side]
                    else:
                        return None
                    left[path, side] = max(left.get((path, side), 0), need)
        # What an earlier input of this kind did not reach, this one may reach after everything else.
        return left if all(left.values()) else None

    def visit(self, x: Tensor, name: HookName, patterns: Sequence[Pattern]) -> Tensor:
        """Keep a value; with ``grad=True`` hand on what may be overwritten without harm to it."""
        self._reached.update(map(id, patterns))
        key = (name.path, name.port, *self._mode)
        known = self._memory.overwritten.get(key)
        inference = x.is_inference()
        # Without version numbers nothing would tell that a value was overwritten, so inference mode copies whatever was asked.
        copy = inference or (self._clone if self._clone is not None else known is not False)
        if self._grad and (x.is_floating_point() or x.is_complex()):
            copy = copy or not x.requires_grad  # torch refuses to write in place on a leaf, so the network cannot go on with one
            node = x if x.requires_grad else x.detach().requires_grad_()
            if name.side == "in":
                # A node of its own, so that its gradient is that of this module's argument alone. Where it must last, it is no
                # view either: a view follows what is written to x.
                node = node.clone() if copy else node.view_as(node)
            self.captures[name] = Capture(node, None if copy else node._version)
            # The network goes on with a copy, so that writing in place cannot change the recorded node or its place in the graph.
            return node.clone() if copy else node
        value = x.detach()
        if copy:
            self.captures[name] = Capture(value.clone(), None)
            if not inference:
                self._watched[name] = (value, value._version)
        else:
            self.captures[name] = Capture(value, None if inference else value._version)
        return x

    def skip(self, value: object, name: HookName) -> None:
        """Note the type of what is no tensor."""
        self.skipped[name] = type(value).__name__

    def passed(self, path: str, side: str) -> None:
        """Stop the forward pass where nothing more is to come."""
        if self._to_come is not None and self.calls[path, side] >= self._to_come.get((path, side), 1 << 62):
            del self._to_come[path, side]
            if not self._to_come:
                raise Stopped

    def completed(self) -> None:
        """Note that all calls of this pass were seen."""
        self.ended = True

    def _shown(self, names: Iterable[HookName]) -> list[str]:
        names = list(names)
        return [str(shown) for _, shown in numbered(names, {(n.path, n.port): self.calls[n.path, n.side] for n in names})]

    def finish(self) -> ActivationCache:
        """Check that everything asked for was met, and learn from the run.

        Returns:
            The cache.

        Raises:
            HookNameError: A literal name matches no hook point.
            EmptyGlobError: A glob matches none.
            HookNotReachedError: A hook point asked for by its literal name did not fire.
            StaleActivationError: A value was overwritten, and copying was declined or thought unnecessary.
        """
        self._memory.points.update(self.points_seen)
        usual = self.selection.usual.get(self._signature)
        names, values, versions = self._log.taken()
        captures: Sequence[tuple[Tensor, int | None]] = tuple(zip(map(Tensor.detach, values), versions))
        alike = usual is not None and names == usual.names and self.ended and not self.captures and not self.skipped
        if usual is None or not alike or tuple(map(_version, values)) != versions:
            usual, captures = self._worked_out(names, captures)
        return ActivationCache(
            usual.index,
            captures,
            axes=self.site.axes,
            unreached=usual.unreached,
            skipped=dict(zip(self._shown(self.skipped), self.skipped.values())) if self.skipped else None,
            grad=self._grad,
            reached_end=self.ended,
            notes=[*_notes(self.site), *([NOTE] if self.attention_seen else [])],
        )

    def _worked_out(
        self, logged: tuple[HookName, ...], captures: Sequence[tuple[Tensor, int | None]]
    ) -> tuple[Usual, Sequence[tuple[Tensor, int | None]]]:
        """All checks, for a run that is not known to be like an earlier one."""
        all_logged = not self.captures and not self.skipped
        self._count(logged, captures)
        if self.ended:
            asked = [(path, side) for path in self.wanted for side in self.selection.sides[path]]
            counts = self._memory.calls.setdefault(self._signature, {})
            counts.update({key: self.calls.get(key, 0) for key in [*asked, *((p, "out") for p in self.points_seen)]})
        unmatched = self.unmatched()
        if unmatched:
            raise unknown_name(unmatched[0], self.known())
        for name, (value, version) in self._watched.items():
            self._learn(name, value._version != version)
        missed = [p for p in self.requests if not p.is_glob and id(p) not in self._reached]
        if missed:
            attention = [p for p in missed if p.side in ATTENTION_PORTS and p.path not in self.attention_seen]
            if attention:
                callers = [str(HookName(path, attention[0].side)) for path in self.attention_seen]
                raise PortError(attention[0].text, "this module calls no attention that can be made explicit", callers)
            raise HookNotReachedError([p.text for p in missed], self._shown(self.captures))
        stale = [name for name, capture in self.captures.items() if capture.stale]
        for name in stale:
            self._learn(name, overwritten=True)
        if stale:
            raise StaleActivationError(self._shown(stale))
        called = {path for path, _ in self.calls}
        # A glob over an attention port says nothing about modules without attention.
        silent = [path for path in self.wanted if path not in called]
        unreached = [
            str(HookName(p)) for p in silent if not all(q.is_glob and set(q.sides) <= set(ATTENTION_PORTS) for q in self.wanted[p])
        ]
        if not self.captures:
            raise HookNotReachedError([p.text for p in self.requests], [])
        names, index = tuple(self.captures), self.selection.index
        if index is None or index.names != names or index.fired != self.calls:
            roles = partial(getattr, self.site, "roles")  # asked when needed
            index = self.selection.index = CacheIndex(names, dict(self.calls), self.site.alias, roles)
        usual = Usual(logged, index, tuple(unreached))
        if self.ended and all_logged and not self.pending:
            self.selection.usual[self._signature] = usual
        return usual, tuple(self.captures.values())

    def _count(self, names: Sequence[HookName], captures: Sequence[tuple[Tensor, int | None]]) -> None:
        """Put what the log held among the captures, its calls counted."""
        for name, capture in zip(names, captures):
            key = (name.path, "out")
            call = self.calls.get(key, 0)
            self.calls[key] = call + 1
            self._reached.update(map(id, self.wanted[name.path]))
            self.captures[name._replace(call=call) if call else name] = Capture(*capture)

    def _visited(self, value: Any, path: str, side: str, patterns: Sequence[Pattern]) -> Any:
        if self._log:  # what passed before comes before
            names, values, versions = self._log.taken()
            self._count(names, list(zip(map(Tensor.detach, values), versions)))
        return super()._visited(value, path, side, patterns)

    def _leaves(self, path: str) -> Callable[..., Any]:
        name = self.selection.plain.get(path)
        if name is None:
            return super()._leaves(path)
        add, scopes = self._log.add, points.active

        def hook(module: nn.Module, args: Any, out: Any) -> Any:
            if self not in scopes():
                return None
            if path in self._lasting and type(out) is Tensor:
                try:
                    add((name, out, out._version))
                except RuntimeError:  # made under inference mode, where tensors have no version number
                    pass
                else:
                    return None
            return self._left(path, out)

        return hook

    def _learn(self, name: HookName, overwritten: bool) -> None:
        key = (name.path, name.port, *self._mode)
        overwritten = self._memory.overwritten[key] = self._memory.overwritten.get(key, False) or overwritten
        if name.port == "out":
            lasting = self._memory.lasting.setdefault(self._mode, set())
            lasting.discard(name.path) if overwritten else lasting.add(name.path)


def _notes(site: Site) -> list[str]:
    fused = any(not m.training for m in site.encoder_layers)
    if fused and not torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled():
        return [
            "nn.TransformerEncoderLayer leaves its fused path where a hook is present, so values may differ by rounding from an unrecorded"
            " run; torch.backends.mha.set_fastpath_enabled(False) makes both equal"
        ]
    return []
