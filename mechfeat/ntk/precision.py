"""On a GPU, torch rounds convolutions to TF32 unless told otherwise: three digits of a kernel that is meant to be exact."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mechfeat.kernels.precision import tf32


@contextmanager
def exact(module: nn.Module) -> Iterator[None]:
    """Convolutions and recurrent layers in full precision, unless TF32 is allowed for matrix products too.

    Recurrent layers take torch's own path: that of cuDNN has no backward in eval mode.

    Args:
        module: The model that is about to run.

    Yields:
        Nothing; the switches are as before afterwards.
    """
    cudnn: Any = torch.backends.cudnn
    enabled, switches = cudnn.enabled, (cudnn.conv, cudnn.rnn)
    before = [s.fp32_precision for s in switches]
    if not tf32():
        for s in switches:
            s.fp32_precision = "ieee"
    if any(isinstance(m, nn.RNNBase) for m in module.modules()):
        cudnn.enabled = False
    try:
        yield
    finally:
        cudnn.enabled = enabled
        for s, value in zip(switches, before):
            s.fp32_precision = value
