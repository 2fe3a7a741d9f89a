"""Edits and activation checkpointing.

A checkpointed region is computed a second time by the backward pass, which may come after the block of the edit has ended, and on
a GPU runs in another thread, where the edit is not in force. The region would then be computed without the edit, and gradients would
silently be those of another function. So an edit inside such a region is refused while gradients are on.
"""

import inspect
import sys
from collections.abc import Sequence
from types import FrameType

import torch
import torch.utils.checkpoint
from torch import Tensor

from mechfeat.errors import UnsupportedModelError
from mechfeat.hooks.editor import Editor
from mechfeat.hooks.names import HookName, Pattern

_CHECKPOINT = inspect.unwrap(torch.utils.checkpoint.checkpoint).__code__


class CheckpointAware(Editor):
    """An editor that refuses what a backward pass would compute again without it."""

    _grad = False

    def started(self) -> None:
        """Take note of the gradient mode: inside a region of the reentrant kind it is switched off."""
        self._grad = torch.is_grad_enabled()
        super().started()

    def visit(self, x: Tensor, name: HookName, patterns: Sequence[Pattern]) -> Tensor:
        """Apply the edits of this hook point, in order."""
        if self._grad and _inside_checkpoint():
            raise UnsupportedModelError(
                f"{name} lies in a region of activation checkpointing, which the backward pass computes again, and then without this edit. "
                "Switch checkpointing off (`gradient_checkpointing_disable()` on models of transformers), or run under torch.no_grad()."
            )
        return super().visit(x, name, patterns)


def _inside_checkpoint() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CHECKPOINT:
            return True
        frame = frame.f_back
    return False
