"""Causal evidence: what removing a feature changes, against removing random directions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import Feature, Finding, signal_share, storable
from mechfeat.hooks import HookedModel, ProjectOut, hooked
from mechfeat.nulls import random_directions

NullDirections = Literal["covariance", "isotropic"]


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class AblationFinding(Finding):
    """The effect of projecting a feature out.

    Attributes:
        feature: What was removed.
        effects: Fall of the metric for each input, in units of the metric.
    """

    feature: Feature
    effects: Float[Tensor, " input"]


def ablation_effect(
    model: nn.Module | HookedModel,
    feature: Feature,
    x: Any,
    metric: Callable[[Any], Float[Tensor, " input"]],
    *,
    on: Bool[Tensor, " input"] | None = None,
    null: NullDirections = "covariance",
    n_null: int = 100,
    n_boot: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> AblationFinding:
    """How far a metric falls when a feature stops varying, compared with stopping random directions.

    The component along the direction is set to its mean over all of ``x`` (mean ablation), so that what is removed is what
    the feature tells apart, and not the constant part of the activations.

    Args:
        model: The model.
        feature: The direction, at its hook point.
        x: Inputs, as :meth:`HookedModel.run_with_cache` takes them.
        metric: From the model's output to one number an input, such as the logit of its class.
        on: The inputs the effect is measured on, all by default; those that have the feature show what it does for them.
        null: ``"covariance"`` draws directions with the covariance of the activations, so that they carry as much of what the
            network computes as a typical activation does; ``"isotropic"`` draws them uniformly, which most features beat.
        n_null: Random directions.
        n_boot: Bootstrap draws of inputs for the interval.
        seed: Seed of both.
        progress: Show a progress bar.

    Returns:
        ``value``: mean fall of the metric, in its units. ``null``: the same for random directions. ``interval``: bootstrap over
        inputs, 95 %. ``reliability``: share of signal, squared distance from the null's median over itself plus the squared
        standard error, in [0, 1]. ``n``: number of inputs.

    Raises:
        OptionError: ``null`` is unknown.
        ShapeError: The metric gives no number for each input, or ``on`` no mark for each.

    Example:
        >>> net = nn.Sequential(nn.Identity(), nn.Linear(3, 1, bias=False))
        >>> _ = nn.init.constant_(net[1].weight, 0.0)
        >>> net[1].weight.data[0, 0] = 2.0
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + 1
        >>> high = x[:, 0] > 1
        >>> found = ablation_effect(net, Feature("0", torch.tensor([1.0, 0.0, 0.0])), x, lambda y: y[:, 0], on=high)
        >>> round(found.value, 3) == round(2 * (x[high, 0].mean() - x[:, 0].mean()).item(), 3), found.established
        (True, True)
    """
    from tqdm.auto import tqdm

    if null not in ("covariance", "isotropic"):
        raise OptionError("null", null, ("covariance", "isotropic"))
    hm = hooked(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        out, cache = hm.run_with_cache(x, feature.hook)
        samples = cache.samples(feature.hook)
        n = samples.n_inputs
        if on is not None and (on.shape != (n,) or not bool(on.any())):
            raise ShapeError(
                f"on marks {int(on.sum())} of {tuple(on.shape)} inputs, and there are {n}. It needs one mark an input, and at least one"
                " set."
            )
        rows = torch.arange(n, device=samples.values.device) if on is None else on.nonzero()[:, 0].to(samples.values.device)
        clean = _per_input(metric(out), n)[rows]
        centre = samples.values.mean(0)

        def fall(direction: Tensor) -> Tensor:
            unit = torch.nn.functional.normalize(direction, dim=0, eps=torch.finfo(direction.dtype).tiny).to(centre)
            edited = hm.run_with_hooks(x, ProjectOut(feature.hook, unit, float(centre @ unit)))
            return clean - _per_input(metric(edited), n)[rows]

        effects = fall(feature.direction)
        directions = _draw(samples.values, null, n_null, generator)
        draws = [float(fall(d).mean()) for d in tqdm(directions, desc="random directions", unit="run", disable=not progress)]
    drawn = torch.randint(len(effects), (n_boot, len(effects)), generator=generator).to(effects.device)
    means = effects[drawn].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975]).to(means)).tolist()
    value, null_values = float(effects.mean()), torch.tensor(draws, dtype=effects.dtype)
    return AblationFinding(
        value=value,
        n=len(effects),
        seed=seed,
        null=null_values,
        reliability=signal_share(value, null_values, float(means.std())),
        interval=(low, high),
        settings={
            "hook": feature.hook,
            "edit": "ProjectOut to the mean",
            "null": null,
            "n_null": n_null,
            "n_boot": n_boot,
            "unit": "input",
        },
        feature=feature,
        effects=effects,
    )


def _per_input(values: Tensor, n: int) -> Tensor:
    if values.shape != (n,):
        raise ShapeError(
            f"The metric gave shape {tuple(values.shape)} for {n} inputs. It must give one number an input, such as logits[:, 3]."
        )
    return values


def _draw(
    values: Float[Tensor, "sample channel"], null: NullDirections, n: int, generator: torch.Generator
) -> Float[Tensor, "draw channel"]:
    if null == "isotropic":
        return random_directions(n, values.shape[1], generator=generator, dtype=values.dtype).to(values.device)
    centred = values - values.mean(0)
    # A normal combination of centred activations has their covariance, without forming it.
    weights = torch.randn(n, len(values), generator=generator, dtype=values.dtype).to(values.device)
    return torch.nn.functional.normalize(weights @ centred, dim=1)
