"""What a trained network says of the same n-grams, and how far its kernel has moved."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechfeat.errors import ModelOutputError, NondeterministicModelError, ShapeError
from mechfeat.hooks import HookedModel, unwrap
from mechfeat.ntk.empirical import empirical_ntk


def measured_scores(
    model: nn.Module | HookedModel, ngrams: Int[Tensor, "ngram position"], *, chunk_size: int = 1024
) -> Float[Tensor, "ngram class"]:
    """Outputs of a model on tokens and n-grams fed in alone: their label scores.

    Args:
        model: A text model from padded ids to scores ``[doc]`` or ``[doc class]``. Edits and hooks on it act as ever.
        ngrams: Padded ids.
        chunk_size: N-grams run at once.

    Returns:
        Scores, float64. Those of a model that is not centred hold what it said before training; :func:`compare` subtracts it.

    Raises:
        ShapeError: There is no n-gram.
        ModelOutputError: The model does not give one score a class for each n-gram.
        NondeterministicModelError: In training mode two runs differ, as under dropout.

    Example:
        >>> from mechfeat.models.text import BagMLP
        >>> measured_scores(BagMLP(5, 8, 16, n_outputs=3), torch.tensor([[0, 1], [4, -1]])).shape
        torch.Size([2, 3])
    """
    if not len(ngrams):
        raise ShapeError(f"ngrams has shape {list(ngrams.shape)}. Scores are measured of at least one n-gram.")
    found: list[Tensor] = []
    with torch.no_grad():
        for part in ngrams.split(chunk_size):
            out = model(part)
            if not isinstance(out, Tensor) or out.ndim not in (1, 2) or len(out) != len(part):
                shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ModelOutputError(
                    f"The model gave {shape} for {len(part)} n-grams. Scores are [{len(part)}] or [{len(part)}, classes]; wrap a model "
                    "that returns something else."
                )
            if not found:
                check_settled(model, part, out)
            found.append(out.detach().double().cpu().reshape(len(part), -1))
    return torch.cat(found)


def check_settled(model: nn.Module | HookedModel, x: Tensor, out: Tensor) -> None:
    """Check that a model in training mode gives the same again: under dropout an output is a draw and no measurement.

    Args:
        model: The model.
        x: Inputs.
        out: Its outputs on them.

    Raises:
        NondeterministicModelError: They differ.
    """
    if not getattr(unwrap(model) if isinstance(model, HookedModel) else model, "training", False):
        return
    again = model(x)
    again = getattr(again, "logits", again)
    if not torch.allclose(again, out, rtol=0, atol=0, equal_nan=True):
        gap = float((again - out).abs().max())
        raise NondeterministicModelError(
            f"Two runs of the model on the same input differ by {gap:.2e}. Call model.eval() before it is measured."
        )


def kernel_drift(
    initial: nn.Module | HookedModel, trained: nn.Module | HookedModel, x: Tensor, x2: Tensor | None = None, *, n_max: int = 256
) -> float:
    r"""Relative change of the empirical kernel, :math:`\|Θ_t - Θ_0\| / \|Θ_0\|` in Frobenius norm.

    Args:
        initial: The network before training.
        trained: The same network after it.
        x: Inputs, such as n-grams; the first ``n_max`` are used.
        x2: Other inputs for a kernel between the two batches.
        n_max: Largest number of inputs.

    Returns:
        Dimensionless, 0 for no change; NaN where training left numbers that are not finite.

    What :func:`empirical_ntk` raises is raised as well.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> kernel_drift(net, net, torch.eye(2))
        0.0
    """
    if any(not bool(torch.isfinite(p).all()) for p in unwrap(trained).parameters()):
        return math.nan
    other = None if x2 is None else x2[:n_max]
    before, after = (empirical_ntk(unwrap(model), x[:n_max], other, outputs="trace").kernel.double() for model in (initial, trained))
    norm = float(before.norm())
    return float((after - before).norm()) / norm if norm else math.inf
