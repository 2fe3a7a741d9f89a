"""The difference of means: the direction from where a property is absent to where it is present."""

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from mechfeat.errors import DtypeError, NonFiniteError, OptionError, ShapeError
from mechfeat.features import Feature, Finding, Samples, storable
from mechfeat.nulls import permuted_labels
from mechfeat.probes.score import auroc

_HALVES = 20  # random halvings behind the reliability; its standard error is then a quarter of one halving's


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class DirectionFinding(Finding):
    """A direction, and how well it separates held-out inputs.

    Attributes:
        feature: The direction, from negatives to positives, in activation units.
        scores: Projection of each held-out sample, in activation units.
        labels: Its label.
    """

    feature: Feature
    scores: Float[Tensor, " held_out"]
    labels: Bool[Tensor, " held_out"]


def difference_of_means(
    samples: Samples,
    labels: Bool[Tensor, " input"],
    *,
    name: str = "",
    holdout: float = 0.3,
    n_null: int = 200,
    n_boot: int = 200,
    seed: int = 0,
) -> DirectionFinding:
    r"""Direction between the means of two groups of inputs, scored on inputs it has not seen.

    .. math:: d = \frac{1}{|P|} \sum_{i ∈ P} x_i - \frac{1}{|N|} \sum_{i ∈ N} x_i

    Everything goes by input and not by row, since positions of one input are not independent: the split, the permutations of
    the null, the bootstrap and the halves.

    Args:
        samples: Activations at one hook point.
        labels: True for inputs that have the property, one label an input.
        name: What the feature is called.
        holdout: Share of the inputs kept for the score.
        n_null: Permutations of the labels. Each permutes training and held-out labels, finds a direction and scores it.
        n_boot: Bootstrap draws of held-out inputs for the interval.
        seed: Seed of all of these.

    Returns:
        ``value``: AUROC on held-out samples, in [0, 1]. ``null``: the same for permuted labels. ``interval``: bootstrap over
        held-out inputs, 95 %. ``reliability``: mean cosine between directions from two halves of the training inputs, in
        [-1, 1]. ``n``: number of inputs.

    Raises:
        ShapeError: One label an input is needed, and at least four inputs of each group.
        DtypeError: Labels are not boolean.
        NonFiniteError: Activations hold NaN or infinity.
        OptionError: ``holdout`` leaves too little on a side.

    Source:
        Marks and Tegmark 2023, *The Geometry of Truth*, mass-mean probing.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(40) % 2 == 0
        >>> x = torch.randn(40, 3, generator=g) + 2.0 * labels[:, None]
        >>> found = difference_of_means(Samples(x, torch.arange(40), "hidden", 40), labels)
        >>> found.established, found.value > 0.9
        (True, True)
    """
    _check(samples, labels, holdout)
    generator = torch.Generator().manual_seed(seed)
    device = samples.values.device
    labels = labels.to(device)
    present = torch.bincount(samples.inputs, minlength=samples.n_inputs) > 0
    train, test = _split(labels, present, holdout, generator)
    sums = samples.values.new_zeros(samples.n_inputs, samples.values.shape[1]).index_add_(0, samples.inputs, samples.values)
    counts = torch.bincount(samples.inputs, minlength=samples.n_inputs).to(sums)

    direction = _direction(sums[train], counts[train], labels[train][None])[0]
    feature = Feature(samples.hook, direction, name, {"method": "difference_of_means", "seed": seed})
    held_out = samples.of_inputs(test)
    row_labels = labels[test][held_out.inputs]
    scores = feature.project(held_out)
    value = float(auroc(scores, row_labels))

    # Training and held-out labels are permuted apart, so that both keep their share of positives.
    train_labels = permuted_labels(labels[train].cpu(), n_null, generator=generator).to(device)
    test_labels = permuted_labels(labels[test].cpu(), n_null, generator=generator).to(device)
    directions = _direction(sums[train], counts[train], train_labels)
    null = auroc(directions @ held_out.values.T, test_labels[:, held_out.inputs])

    halves = []
    for _ in range(_HALVES):
        a, b = _split(labels[train], counts[train] > 0, 0.5, generator)
        pair = [_direction(sums[train][h], counts[train][h], labels[train][h][None])[0] for h in (a, b)]
        halves.append(float(torch.nn.functional.cosine_similarity(pair[0], pair[1], dim=0)))

    settings = {
        "probe": "difference_of_means",
        "hook": samples.hook,
        "score": "AUROC",
        "unit": "input",
        "holdout": holdout,
        "n_null": n_null,
        "n_boot": n_boot,
    }
    return DirectionFinding(
        value=value,
        n=int(present.sum()),
        seed=seed,
        null=null,
        reliability=sum(halves) / _HALVES,
        interval=_bootstrap(scores, held_out.inputs, labels[test], n_boot, generator),
        settings=settings,
        feature=feature,
        scores=scores,
        labels=row_labels,
    )


def _check(samples: Samples, labels: Tensor, holdout: float) -> None:
    if labels.dtype != torch.bool:
        raise DtypeError(
            f"labels are {labels.dtype}; they must be boolean, True where the property is present. Compare, for instance digit == 3."
        )
    if labels.shape != (samples.n_inputs,):
        raise ShapeError(
            f"labels have shape {tuple(labels.shape)} for {samples.n_inputs} inputs at {samples.hook!r}. Give one label an input, not one a"
            " row."
        )
    if not 0 < holdout < 1:
        raise OptionError("holdout", holdout, ("a share between 0 and 1",))
    positives = int(labels.sum())
    if min(positives, len(labels) - positives) < 4:
        raise ShapeError(
            f"{positives} of {len(labels)} inputs are positive. At least four of each kind are needed, to split, permute and halve them."
        )
    if not bool(torch.isfinite(samples.values).all()):
        raise NonFiniteError(f"The samples of {samples.hook!r} hold NaN or infinity.")


def _split(labels: Tensor, present: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two random parts of the inputs, each with at least one of each kind; the second holds about ``share``."""
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for kind in (True, False):
        members = ((labels == kind) & present).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator).to(members.device)]
        k = min(max(1, round(share * len(members))), len(members) - 1)
        parts[0].append(members[k:])
        parts[1].append(members[:k])
    return torch.cat(parts[0]), torch.cat(parts[1])


def _direction(
    sums: Float[Tensor, "input channel"], counts: Float[Tensor, " input"], labels: Bool[Tensor, "draw input"]
) -> Float[Tensor, "draw channel"]:
    positive = labels.to(sums)
    total, rows = sums.sum(0), counts.sum()
    above, n_above = einsum(positive, sums, "d i, i c -> d c"), (positive @ counts)[:, None]
    return above / n_above - (total - above) / (rows - n_above)


def _bootstrap(scores: Tensor, inputs: Tensor, labels: Tensor, n_boot: int, generator: torch.Generator) -> tuple[float, float] | None:
    """Percentile interval over inputs, positives and negatives drawn apart."""
    if not n_boot:
        return None
    table = Samples(scores[:, None], inputs, "", len(labels))
    values = []
    kinds = [(labels == kind).nonzero()[:, 0] for kind in (True, False)]
    for _ in range(n_boot):
        drawn = torch.cat([k[torch.randint(len(k), (len(k),), generator=generator).to(k.device)] for k in kinds])
        again = table.of_inputs(drawn)
        values.append(float(auroc(again.values[:, 0], labels[drawn][again.inputs])))
    low, high = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
