"""What stands in the graph where a parameter was used: a tap that shows the gradient there, and the room in which gradients wait."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.ntk.factors import Dense, Factor
from mechfeat.ntk.rules import Use


@runtime_checkable
class Listener(Protocol):
    """What a tap reports to."""

    def arrived(self, tap: int, g: Float[Tensor, "o ..."]) -> None:
        """Take the gradient at a tap, for one or several outputs."""


class Room:
    """What arrived at a tap of the outputs that were sent so far, samples outermost, as the contractions take it.

    Args:
        uses: Uses whose gradients are small, and are formed on arrival; none where the tap's gradient itself is kept.
        missing: Outputs that have not arrived.
    """

    def __init__(self, uses: list[Use], missing: set[int]) -> None:
        self.uses, self.missing = uses, missing
        self._outputs = len(missing)
        self._rooms: list[Tensor] = []

    def take(self, g: Float[Tensor, "o ..."], at: int) -> None:
        """Keep the gradients of outputs from ``at`` on."""
        pieces = [_gradient(u.factor(g)) for u in self.uses] or [g.movedim(0, 1)]
        if not self._rooms:
            self._rooms = [p.new_empty(len(p), self._outputs, *p.shape[2:]) for p in pieces]
        for room, piece in zip(self._rooms, pieces):
            room[:, at : at + len(g)] = piece
        self.missing -= set(range(at, at + len(g)))

    def whole(self) -> list[Tensor]:
        """What was kept; zero for outputs that did not arrive."""
        for room in self._rooms:
            room[:, list(self.missing)] = 0
        return self._rooms


def _gradient(factor: Factor) -> Tensor:
    assert isinstance(factor, Dense), "a use that says it is small gives its gradient"
    return factor.gradient


class Deaf(Exception):
    """The vmapped backward failed."""


def tapped(out: Tensor, anchor: Tensor, capture: Listener, index: int) -> Tensor:
    """Put a tap on what a call returned.

    Args:
        out: What it returned, no view.
        anchor: A tensor that requires a gradient, which autograd is asked for.
        capture: What the tap reports to.
        index: Its number.

    Returns:
        The same values, in the same memory.
    """
    same: Tensor = _Tap.apply(out, anchor, capture, index)
    return same


class _Tap(torch.autograd.Function):
    """In-place identity: nothing is copied, and in-place operations on the output stay legal. The anchor keeps it on the graph."""

    @staticmethod
    def forward(x: Tensor, anchor: Tensor, capture: Listener, tap: int) -> Tensor:
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_dirty(inputs[0])
        ctx.capture, ctx.tap = inputs[2:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Listen.apply(g, ctx.capture, ctx.tap), None, None, None


class _Listen(torch.autograd.Function):
    """Identity on gradients that shows them with all outputs at once, inside the vmapped backward or outside it."""

    generate_vmap_rule = False

    @staticmethod
    def forward(g: Tensor, capture: Listener, tap: int) -> Tensor:
        capture.arrived(tap, g.unsqueeze(0))
        return g.view_as(g)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pragma: no cover - the gradient is never differentiated again
        return g, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, g: Tensor, capture: Listener, tap: int) -> tuple[Tensor, int]:
        g = g.unsqueeze(0).expand(info.batch_size, *g.shape) if in_dims[0] is None else g.movedim(in_dims[0], 0)
        capture.arrived(tap, g)
        return g, 0


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out torch's warnings about operations that it loops over."""
    with warnings.catch_warnings():
        # An operation without batching rule is looped by torch: right, and slower. The plan is the place to say so.
        warnings.filterwarnings("ignore", message=".*batching rule.*")
        yield
