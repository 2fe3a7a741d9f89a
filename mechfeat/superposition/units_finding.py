"""What the units of a layer respond to, as findings: concepts by label, with labels permuted by input as the null."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import NonFiniteError, ShapeError
from mechfeat.features import Finding, Samples, signal_share, storable
from mechfeat.features.finding import Tail
from mechfeat.nulls import permuted_labels
from mechfeat.superposition.activations import concept_separability
from mechfeat.superposition.jackknife import pseudo_values
from mechfeat.superposition.units import polysemanticity


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class UnitFinding(Finding):
    """A measure of each unit, and its mean.

    Attributes:
        hook: Hook name.
        per_unit: The measure of each unit.
        unit_p_values: p-value of each unit against its own permutations, on the side of ``tail``; uncorrected: of many units some are
            extreme by chance.
        unit_null: Median of each unit under permuted labels.
    """

    hook: str
    per_unit: Float[Tensor, " unit"]
    unit_p_values: Float[Tensor, " unit"]
    unit_null: Float[Tensor, " unit"]


def concept_responses(A: Float[Tensor, "sample unit"], labels: Int[Tensor, " sample"]) -> Float[Tensor, "concept unit"]:
    r"""How far each concept drives each unit above what it does for the concept that drives it least.

    .. math:: R_{cu} = \bar A_{cu} - \min_{c'} \bar A_{c'u}

    The least, and not the mean, since a unit that answers to one concept would else seem to answer to the absence of the others. A unit
    that is silent for one concept alone answers to all others.

    Args:
        A: Activation of each unit on each sample.
        labels: Concept of each sample, any integers.

    Returns:
        Responses ≥ 0, in activation units, concepts in rising order.

    Example:
        >>> concept_responses(torch.tensor([[5.0], [1.0], [1.0]]), torch.tensor([0, 1, 2]))
        tensor([[4.],
                [0.],
                [0.]])
    """
    concepts, concept = labels.unique(return_inverse=True)
    total = A.new_zeros(len(concepts), A.shape[1]).index_add_(0, concept, A)
    means = total / torch.bincount(concept, minlength=len(concepts)).to(A)[:, None]
    return means - means.amin(0)


def unit_polysemanticity(
    samples: Samples, labels: Int[Tensor, " input"], *, n_null: int = 200, n_boot: int = 200, seed: int = 0
) -> UnitFinding:
    """Polysemanticity of each unit over labelled concepts, compared with permuted labels.

    Of each input the mean over its positions counts. A unit that knows no concept gives what permuted labels give. Below it, units
    answer to fewer concepts than chance would have it; above it, to more.

    Args:
        samples: Activations.
        labels: Concept of each input, any integers, each with at least two inputs.
        n_null: Permutations.
        n_boot: Draws of the bootstrap.
        seed: Seed of both.

    Returns:
        ``value``: mean over units, in [0, 1 − 1/K] for K concepts. ``interval`` and ``reliability`` from deleting groups of
        inputs, as in :func:`~mechfeat.superposition.measure`. ``n``: number of inputs.

    Raises:
        ShapeError: There is no label for each input, or a concept has fewer than two inputs, or there are fewer than three concepts.
        NonFiniteError: An activation is not finite, or an input has no sample.

    Source:
        The measure of :func:`~mechfeat.superposition.polysemanticity` on responses to concepts.

    Example:
        >>> labels = torch.arange(60) % 3
        >>> A = torch.nn.functional.one_hot(labels).double() + 0.1 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> found = unit_polysemanticity(Samples(A, torch.arange(60), "relu", 60), labels)
        >>> found.value < 0.01, found.established
        (True, True)
    """
    return _finding(
        samples,
        labels,
        lambda A, c: polysemanticity(concept_responses(A, c)),
        ("polysemanticity", "two-sided", 3),
        n_null=n_null,
        n_boot=n_boot,
        seed=seed,
    )


def unit_separability(
    samples: Samples, labels: Int[Tensor, " input"], *, bins: int = 16, n_null: int = 200, n_boot: int = 200, seed: int = 0
) -> UnitFinding:
    """Jensen–Shannon separability of concepts by each unit, compared with permuted labels.

    Of each input the mean over its positions counts.

    Args:
        samples: Activations.
        labels: Concept of each input, any integers, each with at least two inputs.
        bins: Bins of the histograms.
        n_null: Permutations.
        n_boot: Draws of the bootstrap.
        seed: Seed of both.

    Returns:
        ``value``: mean over units, in [0, 1], which few inputs a bin alone raise: read it against the null. ``n``: number of inputs.

    Raises:
        ShapeError: There is no label for each input, or a concept has fewer than two inputs, or there are fewer than two concepts.
        NonFiniteError: An activation is not finite, or an input has no sample.

    Source:
        As :func:`~mechfeat.superposition.concept_separability`.

    Example:
        >>> labels = torch.arange(60) % 2
        >>> A = labels[:, None] + 0.1 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
        >>> unit_separability(Samples(A, torch.arange(60), "relu", 60), labels).established
        True
    """
    return _finding(
        samples,
        labels,
        lambda A, c: concept_separability(A, c, bins=bins),
        ("separability", "greater", 2),
        n_null=n_null,
        n_boot=n_boot,
        seed=seed,
    )


def _finding(
    samples: Samples,
    labels: Tensor,
    statistic: Callable[[Tensor, Tensor], Tensor],
    what: tuple[str, Tail, int],
    *,
    n_null: int,
    n_boot: int,
    seed: int,
) -> UnitFinding:
    metric, tail, least = what
    A = samples.input_means().double()
    if labels.shape != (len(A),):
        raise ShapeError(
            f"labels has shape {list(labels.shape)}, and there are {len(A)} inputs at {samples.hook!r}. Give one concept an input."
        )
    counts = labels.unique(return_counts=True)[1]
    if len(counts) < least or int(counts.min()) < 2:
        raise ShapeError(
            f"There are {len(counts)} concepts with {counts.tolist()[:8]} inputs. The {metric} of units needs at least {least} concepts "
            "with at least two inputs each."
        )
    if not bool(torch.isfinite(A).all()):
        raise NonFiniteError(f"The activations at {samples.hook!r} hold NaN or infinity, or an input has no sample.")
    labels = labels.to(A.device)
    generator = torch.Generator().manual_seed(seed)
    per_unit = statistic(A, labels)
    shuffled = permuted_labels(labels, n_null, generator=generator)
    drawn = torch.stack([statistic(A, c) for c in shuffled])
    above, below = ((1 + (drawn >= per_unit).sum(0)) / (1 + n_null), (1 + (drawn <= per_unit).sum(0)) / (1 + n_null))
    p_values = above if tail == "greater" else (2 * torch.minimum(above, below)).clamp_max(1)
    value, null = per_unit.mean(), drawn.mean(1)
    pseudo, error = pseudo_values(
        torch.arange(len(A), device=A.device), lambda keep: statistic(A[keep], labels[keep]).mean(), value, generator
    )
    chosen = torch.randint(len(pseudo), (n_boot, len(pseudo)), generator=generator).to(pseudo.device)
    low, high = pseudo[chosen].mean(-1).quantile(torch.tensor([0.025, 0.975], dtype=pseudo.dtype, device=pseudo.device)).tolist()
    return UnitFinding(
        value=float(value),
        n=len(A),
        seed=seed,
        null=null,
        reliability=signal_share(float(value), null, error),
        interval=(low, high),
        settings={
            "metric": metric,
            "null": "permuted labels",
            "n_null": n_null,
            "n_boot": n_boot,
            "unit": "input",
            "concepts": len(counts),
        },
        tail=tail,
        hook=samples.hook,
        per_unit=per_unit,
        unit_p_values=p_values,
        unit_null=drawn.median(0).values,
    )
