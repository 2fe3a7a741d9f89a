"""Recording: the scope that keeps what passes."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mechfeat import points
from mechfeat.errors import GradientError, HookNotReachedError, PortError, StaleActivationError
from mechfeat.hooks.attention import NOTE
from mechfeat.hooks.cache import ActivationCache, Capture
from mechfeat.hooks.names import ATTENTION_PORTS, HookName, Pattern, numbered, unknown_name
from mechfeat.hooks.scope import ModelScope, Site


class Stopped(BaseException):
    """Unwinds the forward pass after the last requested hook point.

    A BaseException, so that ``except Exception`` in a model lets it through.
    """


class Memory:
    """What earlier complete runs of a model have shown. It only ever saves work; a run without it is right too.

    Attributes:
        calls: By kind of input: how often each hook point fires.
        overwritten: By hook point and mode: whether its value is overwritten in place later in the pass.
        points: Names given to ``mf.point``.
    """

    def __init__(self) -> None:
        self.calls: dict[object, dict[tuple[str, str], int]] = {}
        self.overwritten: dict[tuple[object, ...], bool] = {}
        self.points: dict[str, None] = {}


class Recorder(ModelScope):
    """Keeps the selected activations of one forward pass.

    Args:
        site: The model.
        requests: What to record.
        memory: What earlier runs have shown.
        grad: Keep the graph.
        clone: Copy every value (True), none (False), or those not known to stay as they are (None).
        signature: Kind of input, under which call counts are remembered.
        stop: End the pass after the last requested call, where it is known which that is.
    """

    def __init__(
        self,
        site: Site,
        requests: Sequence[Pattern],
        memory: Memory,
        *,
        grad: bool,
        clone: bool | None,
        signature: object,
        stop: bool,
    ) -> None:
        super().__init__(site, requests, tuple(memory.points))
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
        self._left = self._calls_until_done(self._memory.calls.get(signature, {})) if self._stop else None
        self._mode = (self.site.module.training, torch.is_grad_enabled())
        if self._grad and not torch.is_grad_enabled():
            raise GradientError("grad=True was asked for while gradients are switched off. Leave the no_grad or inference_mode block.")

    def forget(self) -> None:
        """Let go of everything that the last pass has shown."""
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
        left: dict[tuple[str, str], int] = {}
        for pattern in self.requests:
            paths = [p for p, ps in self.wanted.items() if pattern in ps]
            if pattern in self.point_patterns:
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
        if self._left is not None and self.calls[path, side] >= self._left.get((path, side), 1 << 62):
            del self._left[path, side]
            if not self._left:
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
        if self.ended:
            asked = [(path, side) for path in self.wanted for side in self.sides(path)]
            counts = self._memory.calls.setdefault(self._signature, {})
            counts.update({key: self.calls.get(key, 0) for key in [*asked, *((p, "out") for p in self.points_seen)]})
        unmatched = self.unmatched()
        if unmatched:
            raise unknown_name(unmatched[0], self.known())
        stale = [name for name, capture in self.captures.items() if capture.stale]
        for name, capture in self.captures.items():
            key = (name.path, name.port, *self._mode)
            if name in self._watched:
                value, version = self._watched[name]
                self._memory.overwritten[key] = self._memory.overwritten.get(key, False) or value._version != version
            elif capture.stale:
                self._memory.overwritten[key] = True
        missed = [p for p in self.requests if not p.is_glob and id(p) not in self._reached]
        if missed:
            attention = [p for p in missed if p.side in ATTENTION_PORTS and p.path not in self.attention_seen]
            if attention:
                callers = [str(HookName(path, attention[0].side)) for path in self.attention_seen]
                raise PortError(attention[0].text, "this module calls no attention that can be made explicit", callers)
            raise HookNotReachedError([p.text for p in missed], self._shown(self.captures))
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
        return ActivationCache(
            self.captures,
            axes=self.site.axes,
            unreached=unreached,
            skipped=dict(zip(self._shown(self.skipped), self.skipped.values())),
            grad=self._grad,
            reached_end=self.ended,
            fired=self.calls,
            alias=self.site.alias,
            roles=partial(getattr, self.site, "roles"),  # asked when needed, as the axes are
            notes=[*_notes(self.site), *([NOTE] if self.attention_seen else [])],
        )


def _notes(site: Site) -> list[str]:
    fused = any(isinstance(m, nn.TransformerEncoderLayer) and not m.training for m in site.modules.values())
    if fused and not torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled():
        return [
            "nn.TransformerEncoderLayer leaves its fused path where a hook is present, so values may differ by rounding from an unrecorded"
            " run; torch.backends.mha.set_fastpath_enabled(False) makes both equal"
        ]
    return []
