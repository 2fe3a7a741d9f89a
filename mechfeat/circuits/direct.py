"""Direct weights: the weights through which one layer's channels reach another layer's units, with nothing learnt in between."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import CircuitError, HookNameError, UnsupportedLayerError
from mechfeat.features import Finding, storable
from mechfeat.hooks import HookedModel, HookName, Steer, hooked
from mechfeat.nulls import shuffled_weights

_PROBED = 8  # source channels that are moved, one by one, to see where they arrive


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitFinding(Finding):
    """The weights from the channels of one hook point into units of another.

    Attributes:
        weights: ``[unit channel *space]``: kernel height and width for a convolution, the positions that were flattened for a
            linear layer.
        contributions: Mean absolute part of each channel in each unit's input over the data, in activation units.
        units: Which units.
        source: Hook name the channels belong to.
        target: Hook name the units belong to.
    """

    weights: Float[Tensor, "unit channel *space"]
    contributions: Float[Tensor, "unit channel"]
    units: tuple[int, ...]
    source: str
    target: str

    def strongest(self, unit: int, k: int = 5) -> list[tuple[int, float]]:
        """The channels that contribute most to a unit.

        Args:
            unit: A unit of this finding.
            k: At most this many.

        Returns:
            Channel and share of the unit's input, largest first.

        Raises:
            CircuitError: The finding does not hold the unit.
        """
        if unit not in self.units:
            raise CircuitError(
                f"Unit {unit} of {self.target!r} is not in this finding, which holds {list(self.units)}. Ask for it with units=[...]."
            )
        share = self.contributions[self.units.index(unit)]
        share = share / share.sum().clamp_min(torch.finfo(share.dtype).tiny)
        top = share.topk(min(k, len(share)))
        return [(int(c), float(v)) for c, v in zip(top.indices, top.values)]


def direct_weights(
    model: nn.Module | HookedModel,
    source: str,
    target: str,
    x: Any,
    *,
    units: Sequence[int] | None = None,
    n_null: int = 100,
    n_boot: int = 200,
    seed: int = 0,
) -> CircuitFinding:
    """Weights from the channels at ``source`` into units of the convolution or linear layer ``target``.

    Between the two there may be anything that keeps channels apart (activation, pooling, batch norm in eval mode, flattening).
    This is checked on the data: moving one source channel must move that channel, and no other, of the target's input.

    Args:
        model: The model.
        source: Hook name whose channels are the inputs of the circuit.
        target: Hook name of a ``Conv2d`` (one group) or ``Linear`` layer.
        x: Inputs on which contributions are measured.
        units: Output channels of the target; all by default.
        n_null: Shuffles of each unit's weights.
        n_boot: Bootstrap draws of inputs.
        seed: Seed of all draws.

    Returns:
        ``value``: share of a unit's input that comes from its strongest channel, mean over units, in [0, 1]. ``null``: the same
        with each unit's weights shuffled. ``interval``: bootstrap over inputs, 95 %. ``reliability``: correlation of the
        contributions between halves of the inputs, mean over units, in [-1, 1]. ``n``: number of inputs.

    Raises:
        CircuitError: The channels do not arrive one to one, or not at all, or a unit does not exist.
        UnsupportedLayerError: The target is no ``Conv2d`` with one group and no ``Linear``.

    Source:
        Olah et al. 2020, *Zoom In: An Introduction to Circuits*.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 3))
        >>> direct_weights(net, "0", "2", torch.rand(4, 1, 5, 5), units=[1]).weights.shape
        torch.Size([1, 3, 3, 3])
    """
    hm = hooked(model)
    layer = _layer(hm, target)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        cache = hm.record(x, [source, f"{target}:in"])
        samples = cache.samples(source, positions="mean")
        n_channels, arriving = samples.values.shape[1], cache[f"{target}:in"]
        weights = layer.weight.detach()
        weights = weights if isinstance(layer, nn.Conv2d) else _by_channel(weights, n_channels, target)
        if weights.shape[1] != n_channels:
            raise CircuitError(
                f"{source!r} has {n_channels} channels and {target!r} reads {weights.shape[1]}. Name the hook point that feeds it."
            )
        _check_correspondence(hm, source, target, x, cache[source], cache.axes(source), arriving, n_channels, generator)
        chosen = tuple(range(len(weights))) if units is None else tuple(int(u) for u in units)
        wrong = [u for u in chosen if not 0 <= u < len(weights)]
        if wrong or not chosen:
            raise CircuitError(f"units={list(chosen)} do not exist at {target!r}, which has units 0 to {len(weights) - 1}.")
        weights = weights[list(chosen)]
        parts = _contributions(layer, weights, arriving)
        value = float(_concentration(parts.mean(0)))
        null = torch.stack(
            [
                _concentration(_contributions(layer, shuffled_weights(weights, generator=generator, within="unit"), arriving).mean(0))
                for _ in range(n_null)
            ]
        )
        drawn = torch.randint(len(parts), (n_boot, len(parts)), generator=generator)
        again = torch.stack([_concentration(parts[rows.to(parts.device)].mean(0)) for rows in drawn])
    low, high = again.quantile(torch.tensor([0.025, 0.975]).to(again)).tolist()
    return CircuitFinding(
        value=value,
        n=len(parts),
        seed=seed,
        null=null,
        reliability=_split_half(parts, generator),
        interval=(low, high),
        settings={
            "source": source,
            "target": target,
            "statistic": "share of the strongest channel",
            "n_null": n_null,
            "n_boot": n_boot,
            "unit": "input",
        },
        weights=weights,
        contributions=parts.mean(0),
        units=chosen,
        source=source,
        target=target,
    )


def _layer(hm: HookedModel, target: str) -> nn.Conv2d | nn.Linear:
    path = HookName.parse(target).path
    modules = dict(hm.module.named_modules())
    if path not in modules:
        raise HookNameError(target, hm.hook_names())
    layer = modules[path]
    if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
        return layer
    raise UnsupportedLayerError(
        f"{target!r} is a {type(layer).__name__}{' with groups' if isinstance(layer, nn.Conv2d) else ''}; direct weights are read from"
        " Conv2d (one group) and Linear."
    )


def _by_channel(W: Float[Tensor, "unit k"], n_channels: int, target: str) -> Tensor:
    """A linear layer's weights by the channel its inputs were flattened from, channels outermost."""
    if W.shape[1] % n_channels:
        raise CircuitError(f"{target!r} reads {W.shape[1]} inputs, which is no multiple of the {n_channels} channels of the source.")
    return W if W.shape[1] == n_channels else W.view(len(W), n_channels, -1)


def _check_correspondence(
    hm: HookedModel,
    source: str,
    target: str,
    x: Any,
    clean: Tensor,
    axes: tuple[str, ...],
    arriving: Tensor,
    n_channels: int,
    generator: torch.Generator,
) -> None:
    step = float(clean.std()) or 1.0
    moved_any = False
    for channel in torch.randperm(n_channels, generator=generator)[:_PROBED].tolist():
        direction = F.one_hot(torch.tensor(channel), n_channels).to(clean)
        with hm.hooks(Steer(source, direction, step)):
            moved = hm.record(x, f"{target}:in")[f"{target}:in"] != arriving
        if moved.ndim == 2 and moved.shape[1] != n_channels:
            moved = moved.view(len(moved), n_channels, -1)
        channels = moved.movedim(-1 if moved.ndim == 3 and arriving.ndim == 3 else 1, 0).flatten(1).any(1).nonzero()[:, 0].tolist()
        moved_any |= bool(channels)
        if any(c != channel for c in channels):
            raise CircuitError(
                f"Channel {channel} of {source!r} reaches channels {channels[:5]} of the input of {target!r}: something between them mixes"
                " channels, so there are no direct weights. Read the layers between them one by one."
            )
    if not moved_any:
        raise CircuitError(f"Moving channels of {source!r} does not change the input of {target!r}: it does not feed that layer.")


def _contributions(layer: nn.Conv2d | nn.Linear, weights: Tensor, a: Tensor) -> Float[Tensor, "input unit channel"]:
    """Mean absolute part of each channel in each unit's input, for each input of the network."""
    if isinstance(layer, nn.Conv2d):
        per_unit = []
        for w in weights:  # one depthwise convolution a unit keeps the channels apart
            maps = F.conv2d(a, w.unsqueeze(1), None, layer.stride, layer.padding, layer.dilation, groups=a.shape[1])
            per_unit.append(maps.abs().mean((2, 3)))
        return torch.stack(per_unit, 1)
    flat = a.reshape(len(a), -1, a.shape[-1])  # [input position k]
    if weights.ndim == 2:
        return (flat.unsqueeze(2) * weights).abs().mean(1)
    grouped = flat.unflatten(2, tuple(weights.shape[1:]))
    return torch.einsum("ntcs,ucs->ntuc", grouped, weights).abs().mean(1)


def _concentration(contributions: Float[Tensor, "unit channel"]) -> Float[Tensor, ""]:
    total = contributions.sum(1)
    return (contributions.amax(1) / torch.where(total > 0, total, 1.0)).mean()


def _split_half(parts: Float[Tensor, "input unit channel"], generator: torch.Generator) -> float | None:
    if len(parts) < 2:
        return None
    order = torch.randperm(len(parts), generator=generator).to(parts.device)
    a, b = (parts[h].mean(0) for h in (order[::2], order[1::2]))
    return float(F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1).mean())
