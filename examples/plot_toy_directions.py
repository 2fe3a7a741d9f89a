"""
How many directions for a hundred features
==========================================

A hundred features, one active at a time, are squeezed through few dimensions by a ReLU model without bias. In two dimensions they end as
a pentagon, whatever the seed. Here are the count, the closed form behind it, what another loss does to it, and what a smooth
activation does.
"""

# %%
# A pentagon, always
# ------------------
#
# Four models at once: each has its own seed, and the trajectory that it would have alone.

import math

import plotly.graph_objects as go

import mechfeat as mf
from mechfeat.plots.style import figure
from mechfeat.superposition import GREEDY_ANGLE, Record, Schedule, count_directions, feature_dimensionality, fit, k_eff

data = mf.data.OneHot(100)
flat = mf.models.ToyBank(mf.models.ToySpec(100, 2, out_bias=False), seeds=range(1, 5))
run = fit(flat, data, steps=40_000, lr=Schedule(0.02, 3.0, 1.0), record=Record(frames=40, spacing="log"))
directions = count_directions(run.weights[-1], GREEDY_ANGLE)
print("directions:", directions.tolist())
assert directions.tolist() == [5] * 4

mf.plots.weights_movie(run)

# %%
# The ledger
# ----------
#
# On one-hot inputs the loss counts features: :func:`~mechfeat.superposition.k_eff` is :math:`f - f^2 L`. At rest it equals the squared
# norm of the weights, exactly. For a pentagon it is :math:`20 / (7 - \sqrt 5) = 4.1982`, more than the four features of two antipodal
# pairs. Neither six nor four corners do better.


def polygon(k: int) -> float:
    """Effective features of a regular polygon with k corners, its size adapted."""
    return k / (1 + sum(max(math.cos(2 * math.pi * r / k), 0) ** 2 for r in range(1, k)))


W = run.weights[-1].double()
effective = k_eff(mf.superposition.one_hot_loss(W), 100)
print("effective features:", [f"{v:.4f}" for v in effective], "closed form:", f"{polygon(5):.4f}")
assert abs(polygon(5) - 20 / (7 - math.sqrt(5))) < 1e-12
assert max(polygon(k) for k in range(3, 12)) == polygon(5)
assert float((effective - polygon(5)).abs().max()) < 0.0005
assert float((W.square().sum((-2, -1)) / effective - 1).abs().max()) < 0.003

# %%
# Another loss, other corners
# ---------------------------
#
# With the p-th power of the error, a polygon of unit features gains one for each corner and pays the p-th powers of their overlaps. The
# higher the power, the cheaper small overlaps are, and the more corners are best.


def gain(k: int, p: int) -> float:
    """What k unit features take off the loss."""
    return k * (1 - sum(max(math.cos(2 * math.pi * r / k), 0) ** p for r in range(1, k)))


corners = range(4, 10)
best = {p: max(corners, key=lambda k, p=p: gain(k, p)) for p in range(1, 10)}
print("corners by power:", best)
assert best == {1: 4, 2: 5, 3: 5, 4: 6, 5: 7, 6: 7, 7: 8, 8: 8, 9: 9}

figure(
    [go.Scatter(x=list(corners), y=[gain(k, p) for k in corners], name=f"p = {p}") for p in (1, 2, 4, 6, 8)],
    title="What a polygon takes off the loss",
    x="corners",
    y="features gained",
)

# %%
# Training says the same: with the fourth power, two dimensions hold more directions than with the second.

lp = fit(
    mf.models.ToyBank(flat.spec, seeds=range(1, 5)),
    data,
    steps=15_000,
    lr=Schedule(0.02, 3.0, 1.0),
    loss=mf.superposition.lp(4),
    record=Record(1, 1),
)
more = count_directions(lp.weights[-1], 8.1)
print("directions with p = 4:", more.tolist())
assert int(more.min()) > 5

# %%
# More dimensions
# ---------------
#
# The number of directions grows by seven or eight for each dimension, if directions within 25.8° count as one, as the notebooks of
# FeatureFinding have it. The number belongs to the angle: the curve has no plateau beyond three dimensions. Effective features do not
# depend on an angle: 4.2, 6.4 and 8.7. They beat pentagons and antipodal pairs side by side, and use every dimension completely.

found, curves = {}, {}
for d in (2, 3, 4):
    spec = mf.models.ToySpec(100, d, out_bias=False)
    several = fit(mf.models.ToyBank(spec, seeds=(1, 2)), data, steps=40_000, lr=Schedule(0.02, 3.0, 1.0), record=Record(1, 1))
    W = several.weights[-1].double()
    found[d] = float(k_eff(mf.superposition.one_hot_loss(W), 100).mean())
    curves[f"{d} dimensions"] = mf.superposition.direction_curve(W[0], list(range(0, 61, 2)))
    assert found[d] >= polygon(5) * (d // 2) + 2 * (d % 2) - 0.001
    assert float((feature_dimensionality(W).sum(-1) / d - 1).abs().max()) < 0.002
print("effective features:", {d: f"{v:.2f}" for d, v in found.items()})
assert abs(found[3] / 6.418 - 1) < 0.01
assert abs(found[4] / 8.721 - 1) < 0.015

mf.plots.direction_counts(curves)

# %%
# A smooth activation
# -------------------
#
# With GELU the ending depends on the seed. Five directions are the most frequent, with exactly one feature alive on each. The census of
# a thousand seeds, a row of the benchmarks, gives the share; here are sixteen.

gelu = mf.models.ToySpec(50, 2, activation="gelu", out_bias=False)
census = fit(
    mf.models.ToyBank(gelu, seeds=range(1, 17)), mf.data.OneHot(50), steps=40_000, lr=Schedule(0.001, 2.0, 0.2), record=Record(1, 1)
)
W = census.weights[-1]
counts = count_directions(W, GREEDY_ANGLE, min_norm=0.1)
alive = (W.norm(dim=-1) > 0.1 * W.norm(dim=-1).amax(-1, keepdim=True)).sum(-1)
share = float((counts == 5).double().mean())
print("directions:", sorted(counts.tolist()), f"five in {share:.0%}")
assert 0.4 <= share <= 0.85
assert bool((alive[counts == 5] == 5).all())

figure(
    go.Histogram(x=counts.tolist()),
    title="GELU: directions by seed",
    x="directions",
    y="seeds",
)
