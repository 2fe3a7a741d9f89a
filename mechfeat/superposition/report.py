"""Superposition in a layer of a real network: its directions, its activations and its units, each against a null."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechfeat.errors import DegenerateNullError, NonFiniteError, ShapeError, UnsupportedLayerError
from mechfeat.features import FeatureSet, Finding, Samples, signal_share, storable
from mechfeat.features.storage import Stored
from mechfeat.hooks import HookedModel, hooked
from mechfeat.nulls import random_directions
from mechfeat.superposition.activations import effective_features, superposition_ratio
from mechfeat.superposition.jackknife import pseudo_values
from mechfeat.superposition.measure import METRICS, measure
from mechfeat.superposition.metrics import participation_ratio
from mechfeat.superposition.reading import read_directions, write_directions
from mechfeat.superposition.units_finding import unit_polysemanticity, unit_separability


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationFinding(Finding):
    """A measure of the activations of a hook point.

    Attributes:
        hook: Hook name.
        n_units: Units, or features, that the measure ran over.
    """

    hook: str
    n_units: int


@storable
@dataclass(frozen=True, eq=False)
class SuperpositionReport(Stored):
    """Findings about one hook point.

    Attributes:
        hook: Hook name.
        features: The directions that were measured; None where there are none.
        findings: By name.
        skipped: What could not be measured, and why.
    """

    hook: str
    features: FeatureSet | None
    findings: Mapping[str, Finding]
    skipped: Mapping[str, str]

    def __getitem__(self, name: str) -> Finding:
        return self.findings[name]

    def summary(self) -> str:
        """One line a finding, and one for each that was skipped."""
        width = max(len(name) for name in (*self.findings, *self.skipped))
        lines = [f"{name:{width}}  {found.summary()}" for name, found in self.findings.items()]
        return "\n".join([*lines, *(f"{name:{width}}  skipped: {why}" for name, why in self.skipped.items())])


def superposition_report(
    model: nn.Module | HookedModel,
    hook: str,
    x: Any,
    *,
    labels: Int[Tensor, " input"] | None = None,
    features: FeatureSet | Float[Tensor, "feature channel"] | None = None,
    n_null: int = 100,
    n_boot: int = 200,
    max_samples: int = 4096,
    seed: int = 0,
) -> SuperpositionReport:
    r"""Measure superposition at a hook point of any model.

    Three groups of findings:

    - directions: mean dimensionality, mean interference, mean squared overlap, frame potential, ReLU energy, effective rank and
      participation ratio of rows at length 1, against random directions; features per dimension, against shuffled entries;
    - activations: ``active_dimensions``, the participation ratio of their covariance, against units shuffled independently;
      ``active_units``, the effective number of units in use, against randomly rotated axes; ``superposition_ratio``, effective features
      over units, of the lengths of activations along the directions, against as many random directions;
    - units, where ``labels`` are given: ``polysemanticity`` and ``separability`` over concepts, against permuted labels.

    Args:
        model: The model.
        hook: Hook name of an activation with channels.
        x: Inputs, as :meth:`HookedModel.record` takes them.
        labels: Concept of each input.
        features: Directions at the hook point, such as the decoder of a dictionary. By default those of the layer's weights: the ones
            that it reads at ``layer:in``, the ones that its inputs write at ``layer``; of other modules there are none.
        n_null: Draws of each null.
        n_boot: Draws of each bootstrap.
        max_samples: Positions beyond so many are left out at random, for the measures of activations.
        seed: Seed of all draws.

    Returns:
        The report; ``skipped`` says what was not measured and why.

    Raises:
        ShapeError: Features have another number of channels, there are fewer than three samples, labels do not fit, ``n_null`` or
            ``n_boot`` is not positive, or ``max_samples`` is below three.
        NonFiniteError: An activation, or a direction, is NaN or infinite.

    Cost:
        ``n_null`` evaluations of each measure: O(n² m) each for n directions; O(samples · m log samples) for the shuffled units.

    Example:
        >>> net = nn.Sequential(nn.Linear(12, 4), nn.ReLU())
        >>> x = torch.rand(50, 12, generator=torch.Generator().manual_seed(0))
        >>> report = superposition_report(net, "0", x, n_null=19)
        >>> len(report.features), sorted(report.findings)[:3], sorted(report.skipped)
        (12, ['active_dimensions', 'active_units', 'effective_rank'], ['polysemanticity', 'separability'])
    """
    if n_null < 1 or n_boot < 1 or max_samples < 3:
        raise ShapeError(
            f"n_null={n_null}, n_boot={n_boot} and max_samples={max_samples}. At least one draw of each is needed, and three samples."
        )
    hm = hooked(model)
    with torch.no_grad():
        samples = hm.record(x, [hook]).samples(hook)
    if len(samples) < 3:
        raise ShapeError(f"There are {len(samples)} samples at {hook!r}. A report on superposition needs at least three.")
    if not bool(torch.isfinite(samples.values).all()):
        raise NonFiniteError(f"The activations at {hook!r} hold NaN or infinity. `torch.isfinite` of the inputs and weights shows where.")
    skipped: dict[str, str] = {}
    directions = _features(hm, hook, features, samples, skipped)
    findings: dict[str, Finding] = {}
    if directions is not None:
        for metric in METRICS:
            null = "shuffled_weights" if metric == "features_per_dimension" else "random_directions"
            try:
                findings[metric] = measure(directions, metric=metric, null=null, n_null=n_null, n_boot=n_boot, seed=seed)  # type: ignore[arg-type]
            except DegenerateNullError as error:
                skipped[metric] = str(error)
    A, of = _rows(samples, max_samples, seed)
    draws = {"n_null": n_null, "n_boot": n_boot, "seed": seed}
    findings["active_dimensions"] = _activation(
        hook, A, of, lambda A: participation_ratio(A - A.mean(0)), _shuffled_units, "units shuffled independently", draws
    )
    findings["active_units"] = _activation(hook, A, of, effective_features, _rotated, "rotated axes", draws)
    if directions is not None:
        unit = torch.nn.functional.normalize(directions.directions.double(), dim=-1, eps=1e-300).to(A.device)
        stacked = torch.cat([A, A @ unit.mT], -1)
        n_units = A.shape[1]

        def ratio(rows: Tensor) -> Tensor:
            return superposition_ratio(rows[:, n_units:], n_units)

        def chance(rows: Tensor, generator: torch.Generator) -> Tensor:
            other = random_directions(*unit.shape, generator=generator, dtype=rows.dtype, device=rows.device)
            other = other * unit.any(-1, keepdim=True)  # a zero row is a feature that is not there, by chance as well
            return torch.cat([rows[:, :n_units], rows[:, :n_units] @ other.mT], -1)

        findings["superposition_ratio"] = _activation(hook, stacked, of, ratio, chance, "random directions", draws, n_units=len(unit))
    if labels is None:
        skipped |= dict.fromkeys(("polysemanticity", "separability"), "it needs labels=, one concept an input.")
    else:
        findings["polysemanticity"] = unit_polysemanticity(samples, labels, **draws)
        findings["separability"] = unit_separability(samples, labels, **draws)
    return SuperpositionReport(hook, directions, findings, skipped)


def _features(hm: HookedModel, hook: str, given: Any, samples: Samples, skipped: dict[str, str]) -> FeatureSet | None:
    if given is not None:
        found = given if isinstance(given, FeatureSet) else FeatureSet(hook, given)
        if found.directions.shape[1] != samples.values.shape[1]:
            raise ShapeError(
                f"The features have {found.directions.shape[1]} channels, and {hook!r} has {samples.values.shape[1]}. Give directions in "
                "the channels of this hook point."
            )
        return found
    path, _, port = hook.split("#")[0].partition(":")
    try:
        if port == "in":
            found = read_directions(hm, path)
        elif port in ("", "out"):
            found = write_directions(hm, path)
        else:
            raise UnsupportedLayerError(f"{hook!r} is neither the input nor the output of a layer.")
    except (UnsupportedLayerError, LookupError) as error:
        skipped |= dict.fromkeys((*METRICS, "superposition_ratio"), f"no directions: {error} Give features=.")
        return None
    if found.directions.shape[1] != samples.values.shape[1]:
        why = f"the weights hold {found.directions.shape[1]} channels, and the activation {samples.values.shape[1]}. Give features=."
        skipped |= dict.fromkeys((*METRICS, "superposition_ratio"), why)
        return None
    return FeatureSet(hook, found.directions)


def _rows(samples: Samples, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Activations in float64 and the input of each row, thinned at random."""
    values, of = samples.values.double(), samples.inputs
    if len(values) > most:
        keep = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))[:most].sort().values.to(values.device)
        values, of = values[keep], of[keep]
    return values, of


def _shuffled_units(A: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.rand(A.shape, generator=generator, dtype=torch.float64).argsort(0).to(A.device)
    return A.gather(0, order)


def _rotated(A: Tensor, generator: torch.Generator) -> Tensor:
    Q, R = torch.linalg.qr(torch.randn(A.shape[1], A.shape[1], generator=generator, dtype=torch.float64))
    return A @ (Q * R.diagonal().sign()).to(A)  # uniform over rotations and reflections


def _activation(
    hook: str,
    A: Tensor,
    of: Tensor,
    statistic: Callable[[Tensor], Tensor],
    chance: Callable[[Tensor, torch.Generator], Tensor],
    null_name: str,
    draws: Mapping[str, int],
    *,
    n_units: int | None = None,
) -> ActivationFinding:
    generator = torch.Generator().manual_seed(draws["seed"])
    value = statistic(A)
    null = torch.stack([statistic(chance(A, generator)) for _ in range(draws["n_null"])])
    inputs = of.unique()
    interval, reliability = None, None
    if len(inputs) >= 3:  # by input, since positions of one are not independent
        pseudo, error = pseudo_values(inputs, lambda keep: statistic(A[torch.isin(of, keep)]), value, generator)
        chosen = torch.randint(len(pseudo), (draws["n_boot"], len(pseudo)), generator=generator).to(pseudo.device)
        low, high = pseudo[chosen].mean(-1).quantile(torch.tensor([0.025, 0.975], dtype=pseudo.dtype, device=pseudo.device)).tolist()
        interval, reliability = (low, high), signal_share(float(value), null, error)
    return ActivationFinding(
        value=float(value),
        n=len(inputs),
        seed=draws["seed"],
        null=null,
        reliability=reliability,
        interval=interval,
        settings={"null": null_name, "n_null": draws["n_null"], "n_boot": draws["n_boot"], "unit": "input", "samples": len(A)},
        tail="two-sided",
        hook=hook,
        n_units=A.shape[1] if n_units is None else n_units,
    )
