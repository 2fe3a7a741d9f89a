"""Kernels of a function of the outputs: their sum, one class, or whatever the user asks for, each at its own cost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mechfeat.errors import ModelOutputError, OptionError
from mechfeat.kernels import Outputs

Chosen = Outputs | Literal["pseudo"] | int | Callable[[Tensor], Tensor]


def kept(outputs: Chosen) -> Outputs:
    """What the computation keeps of the outputs that it sees.

    Args:
        outputs: What was asked for.

    Returns:
        It, or ``full`` for the outputs of a read-out.
    """
    return outputs if outputs in ("full", "trace", "diagonal") else "full"


def name_of(outputs: Chosen) -> str:
    """Name of a choice of outputs in results.

    Args:
        outputs: What was asked for.

    Returns:
        A word or two.
    """
    if isinstance(outputs, str):
        return outputs
    return f"class {outputs}" if isinstance(outputs, int) else getattr(outputs, "__name__", type(outputs).__name__)


def check(outputs: Any) -> None:
    """Check that a choice of outputs is one.

    Args:
        outputs: What was asked for.

    Raises:
        OptionError: It is no name of a reduction, no class and no function.
    """
    words = ("full", "trace", "diagonal", "pseudo")
    if isinstance(outputs, bool) or not (callable(outputs) or isinstance(outputs, int) or (isinstance(outputs, str) and outputs in words)):
        raise OptionError("outputs", outputs, (*words, "the number of a class", "a function of the outputs"))


@contextmanager
def reading(module: nn.Module, outputs: Chosen) -> Iterator[None]:
    """Let a model return what was asked for instead of its outputs, by a forward hook that runs after all others.

    One backward pass is then enough for a sum or a class, and nothing else needs to know.

    Args:
        module: The model.
        outputs: What was asked for.

    Yields:
        Nothing.
    """
    if outputs in ("full", "trace", "diagonal"):
        yield
        return
    handle = module.register_forward_hook(lambda module, arguments, y: _read(y, outputs))
    try:
        yield
    finally:
        handle.remove()


def _read(y: Any, outputs: Chosen) -> Any:
    if not isinstance(y, Tensor) or not y.is_floating_point() or y.ndim == 0 or not y.numel():
        return y  # refused when the output is checked
    y = y.reshape(len(y), -1)
    if isinstance(outputs, int):
        if not -y.shape[1] <= outputs < y.shape[1]:
            raise OptionError("outputs", outputs, tuple(range(y.shape[1])) if y.shape[1] < 20 else (f"a class below {y.shape[1]}",))
        return y[:, outputs, None]
    if not callable(outputs):
        return y.sum(1, keepdim=True)
    z = outputs(y)
    if not isinstance(z, Tensor) or not z.is_floating_point() or z.ndim == 0 or len(z) != len(y):
        what = f"shape {tuple(z.shape)} and {z.dtype}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
        raise ModelOutputError(
            f"The function given as outputs= returned {what} for outputs of shape {tuple(y.shape)}. It must return real numbers, one row a "
            "sample, computed by torch from that sample's outputs."
        )
    return z


def squeezed(kernel: Tensor, outputs: Chosen) -> Tensor:
    """A kernel of one output a sample without the axes of outputs.

    Args:
        kernel: As computed.
        outputs: What was asked for.

    Returns:
        ``[n1 n2]`` for the sum, a class, or a function with one value a sample.
    """
    if outputs in ("full", "trace", "diagonal") or kernel.shape[1] != 1:
        return kernel
    return torch.squeeze(kernel, (1, 3))
