"""Critical points of six features in the plane, one active at a time: regular k-gons, polished to rounding."""

import math

import torch
from torch import Tensor

from mechfeat.superposition import one_active_loss

N = 6


def loss(p: Tensor) -> Tensor:
    """The exact loss of parameters along the last axis: W row by row, then b."""
    return one_active_loss(p[..., : 2 * N].unflatten(-1, (N, 2)), p[..., 2 * N :])


def gradient(p: Tensor) -> Tensor:
    """Of the exact loss, for each point."""
    p = p.detach().requires_grad_(True)
    return torch.autograd.grad(loss(p).sum(), p)[0]


def spectrum(p: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, in rising order, and eigenvectors of the Hessian of the exact loss at one point."""
    found = torch.func.jacrev(torch.func.jacrev(loss))(p)
    return torch.linalg.eigh((found + found.mT) / 2)


def polish(p: Tensor, *, steps: int = 60) -> Tensor:
    """Newton's method on the gradient, for saddles as for minima; flat directions are left as they are, and steps are at most 0.1 long."""
    p = p.double().clone()
    for _ in range(steps):
        values, vectors = spectrum(p)
        steep = values.abs() > 1e-7
        step = vectors @ torch.where(steep, vectors.mT @ gradient(p) / torch.where(steep, values, 1.0), 0.0)
        size = float(step.norm())
        p = p - step * min(1.0, 0.1 / max(size, 1e-30))
        if size < 1e-14:
            break
    return p


def regular(k: int, signs: str) -> Tensor:
    """A regular k-gon of the first features; the others have no weight, and a bias of 1/12, the mean of a feature, or of -0.1."""
    length, bias = (1.2, -0.3) if k == N else (1.1, -0.1)
    angle = 2 * math.pi * torch.arange(k, dtype=torch.float64) / max(k, 1)
    W = torch.zeros(N, 2, dtype=torch.float64)
    W[:k] = length * torch.stack([angle.cos(), angle.sin()], -1)
    rest = [1 / 12 if sign == "+" else -0.1 for sign in signs]
    return polish(torch.cat([W.flatten(), torch.tensor([bias] * k + rest, dtype=torch.float64)]))


def kinds() -> dict[str, Tensor]:
    """All regular k-gons with 2 to 6 corners, and no corner, by the signs of the biases of the features that have none."""
    found = {}
    for k in (0, 2, 3, 4, 5, 6):
        for minus in range(N - k + 1):
            signs = "+" * (N - k - minus) + "-" * minus
            found[f"{k}{signs}"] = regular(k, signs)
    return found
