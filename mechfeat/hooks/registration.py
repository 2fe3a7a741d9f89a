"""Hooks of a scope in the tables of a model's modules, all under one lock.

The tables are plain dicts, and two threads may hook one model. ``register_forward_hook`` makes a handle for every hook, which costs
as much as a small layer takes to run; so a scope takes one id from torch and places all its hooks under that. Ids are unique in the
process, and a scope puts at most one hook of a kind on a module, so it meets no other entry.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

REGISTRATION = threading.Lock()


class HookTables:
    """The hooks of one scope."""

    def __init__(self) -> None:
        self._id = RemovableHandle(OrderedDict()).id  # a handle of no table, for its id
        self._placed: list[dict[int, Any]] = []

    def leaves(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Place a hook on the output of a module.

        Args:
            module: The module.
            hook: As ``register_forward_hook`` takes it.
        """
        self._place(module._forward_hooks, hook)

    def enters(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Place a hook on the arguments of a module.

        Args:
            module: The module.
            hook: As ``register_forward_pre_hook`` takes it with ``with_kwargs=True``.
        """
        self._place(module._forward_pre_hooks_with_kwargs, True)  # first: with the hook alone, another thread would call it without
        self._place(module._forward_pre_hooks, hook)

    def remove(self) -> None:
        """Take all of them out again, the last one first."""
        while self._placed:
            self._placed.pop().pop(self._id, None)

    def _place(self, table: Any, value: Any) -> None:
        self._placed.append(table)  # before the entry is made, so that an interrupt between the two leaves nothing behind
        table[self._id] = value
