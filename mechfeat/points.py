"""Where a value passes: :func:`point`, and the scopes that listen while a model runs.

A scope is one recording or one block of edits. Scopes live in a context variable, so a thread, a task or a nested run sees
its own and nobody else's. Outside every scope a point costs one look-up and returns its argument.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Scope(Protocol):
    """What listens while a model runs."""

    def at_point(self, x: Tensor, name: str, within: nn.Module | None) -> Tensor:
        """Take note of ``x``, or return what shall take its place."""
        ...


_scopes: ContextVar[tuple[Scope, ...]] = ContextVar("mechfeat_scopes", default=())


def point(x: Tensor, name: str, within: nn.Module | None = None) -> Tensor:
    """Name a value inside a ``forward``, so that it can be recorded and edited like the output of a module.

    Use it for what has no module of its own: a residual sum, a hand-written attention pattern, the hidden layer of a toy
    model that multiplies by a bare parameter. It is the identity where no run is active.

    Args:
        x: The value.
        name: Its hook name. With ``within`` it is appended to that module's path.
        within: The module whose ``forward`` this is (pass ``self``), where several instances use the same name.

    Returns:
        ``x``, or what an edit puts in its place.

    Example:
        >>> import torch, mechfeat as mf
        >>> class Toy(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.W = torch.nn.Parameter(torch.eye(2))
        ...
        ...     def forward(self, x):
        ...         return mf.point(x @ self.W, "hidden") @ self.W.T
        >>> mf.HookedModel(Toy()).record(torch.ones(1, 2), "hidden")["hidden"]
        tensor([[1., 1.]])
    """
    scopes = _scopes.get()
    if not scopes:
        return x
    for scope in scopes:
        x = scope.at_point(x, name, within)
    return x


active: Callable[[], tuple[Scope, ...]] = _scopes.get
"""The scopes open in this thread or task, outermost first. Hooks of every recorded module ask, so nothing is wrapped around it."""


def is_active(scope: Scope) -> bool:
    """Whether a scope is open in this thread or task.

    Args:
        scope: The scope.

    Returns:
        True inside its :func:`entered` block, False in other threads.
    """
    return scope in _scopes.get()


@contextmanager
def entered(scope: Scope) -> Iterator[None]:
    """Open a scope for the duration of a ``with`` block, inside those already open.

    Args:
        scope: The scope.

    Yields:
        Nothing.
    """
    token = _scopes.set((*_scopes.get(), scope))
    try:
        yield
    finally:
        _scopes.reset(token)
