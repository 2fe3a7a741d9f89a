"""The models and inputs that are timed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mechfeat.bench.workloads import Decoder, ResNet18, vgg_like
from mechfeat.models import DigitsCNN, mlp


@dataclass(frozen=True)
class Problem:
    """A model with an input, made anew from a fixed seed.

    Attributes:
        name: Name in the results.
        make: Gives module and batch, in float32 on the CPU.
        peers: Whether the Jacobians of whole networks fit in memory.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Tensor]]
    peers: bool = True

    def build(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[nn.Module, Tensor]:
        """Make it.

        Args:
            dtype: Dtype of parameters and floating-point inputs.
            device: Where.

        Returns:
            Module in eval mode, and batch.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            previous = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
            try:
                module, x = self.make()
            finally:
                torch.set_default_dtype(previous)
        return module.eval().to(device, dtype), x.to(device, dtype if x.is_floating_point() else x.dtype)


def _mlp(n: int, *widths: int) -> Callable[[], tuple[nn.Module, Tensor]]:
    return lambda: (mlp(widths), torch.randn(n, widths[0]))


PROBLEMS = {
    p.name: p
    for p in (
        Problem("mlp-784-1024-1024-10 n32", _mlp(32, 784, 1024, 1024, 10)),
        Problem("mlp-784-1024-1024-10 n256", _mlp(256, 784, 1024, 1024, 10), peers=False),
        Problem("toy-16-128-128-1 n4096", lambda: (mlp([16, 128, 128, 1], nn.Tanh), torch.randn(4096, 16))),
        Problem("vgg-like n64", lambda: (vgg_like(), torch.randn(64, 3, 32, 32))),
        Problem("resnet-18 n12", lambda: (ResNet18(), torch.randn(12, 3, 32, 32))),
        Problem("transformer-256 n32", lambda: (Decoder(n_outputs=10), torch.randint(0, 1000, (32, 64)))),
        Problem("digits-cnn n64", lambda: (DigitsCNN(), torch.rand(64, 1, 8, 8))),
        Problem("mlp-16-32-4 n8", _mlp(8, 16, 32, 4)),
    )
}
