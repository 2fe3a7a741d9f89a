"""
How shapes come about, and what bends them
==========================================

Features find their arrangement in steps, sets of features pass through one shape to the next, one rare feature bends a pentagon until it
snaps, and GELU with a bias finds fewer features than ReLU does. The sections on learning dynamics and on non-uniform superposition of *Toy
Models of Superposition*, and the sandbox of FeatureFinding.
"""

# %%
# A fall of the loss is a feature that moves
# ------------------------------------------
#
# Six features in three dimensions, from tiny weights, without noise: expectations are sums over a list of inputs. Every fall of the loss
# comes with dimensionalities that change, and all models end in three pairs.

import torch

import mechfeat as mf
from mechfeat.data import CorrelatedSets, SparseUniform
from mechfeat.superposition import Record, Schedule, feature_dimensionality, feature_graph, fit, grid

tiny = 0.001 * torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0))
exact = SparseUniform(6, density=0.1).expectation(max_active=2, points=4)
run = fit(mf.models.ToyBank(mf.models.ToySpec(6, 3), 3, init=tiny), exact, steps=8000, lr=0.3, record=Record(401, 401))
falls = [event for event in run.events(drop=0.05) if event.start > 0]  # at the start biases reach the mean of the inputs
for event in falls:
    print(f"model {event.instance}, steps {event.start} to {event.stop}: D changes by up to {float(event.change.abs().max()):.2f}")
assert {event.instance for event in falls} == {0, 1, 2}
assert all(event.moved for event in falls)
assert all(feature_graph(w).summary() == "3 x digon" for w in run.weights[-1])
assert float((feature_dimensionality(run.weights[-1]) - 1 / 2).abs().max()) < 0.01

mf.plots.loss_events(run)

# %%
# From a principal component to an octahedron
# -------------------------------------------
#
# Two sets of three features, each set active together. At first a set is one direction, as its principal component would be. Then its
# features spread, opposite to those of the other set, and at last all six stand at right angles or opposite each other.

small = 0.05 * torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
sets = CorrelatedSets(6, set_size=3, density=0.1)
options = {"lr": 0.003, "batch": 512, "optimizer": "adam", "record": Record(61, 61)}
shaped = fit(mf.models.ToyBank(mf.models.ToySpec(6, 3), 4, init=small), sets, steps=6000, **options)
same = torch.arange(6)[:, None] // 3 == torch.arange(6) // 3
within = []
for step in (3, 10, 60):
    unit = torch.nn.functional.normalize(shaped.weights[step], dim=-1)
    cosines = unit @ unit.mT
    within.append(float(cosines[:, same & ~torch.eye(6, dtype=torch.bool)].mean()))
print("mean cosine within a set after 300, 1,000 and 6,000 steps:", [f"{v:.2f}" for v in within])
assert within[0] > 0.7 > 0.5 > within[1] > 0.1 > abs(within[2])
assert float(cosines.amin((-2, -1)).max()) < -0.95

mf.plots.weights_movie(shaped)

# %%
# One rare feature
# ----------------
#
# Five equal features in a plane make a regular pentagon. Make one of them rarer, and the pentagon bends; below about a quarter of the
# others' frequency the best of several models has two pairs instead, without the rare feature. The row of the benchmarks has twelve ratios.

ratios = (0.15, 0.4, 1.0)
bank = grid(mf.models.ToySpec(5, 2), over={"ratio": ratios, "seed": range(8)}, init="xavier")
density = torch.full((len(bank), 5), 0.05)
density[:, 0] *= bank.along("ratio")
data = SparseUniform(5, density=density).expectation(max_active=2, points=4)
rate = Schedule(0.01, 0.01, 0.0, warmup=0.0, decay="cosine")
best = fit(bank, data, steps=2500, lr=rate, optimizer="adam", record=Record(1, 1)).best()
shapes = {ratio: feature_graph(w, min_norm=0.2).summary() for ratio, w in zip(ratios, best.weights[-1])}
print("arrangement by relative frequency:", shapes)
assert shapes[0.15] == "2 x digon"
assert "digon" not in shapes[0.4]
assert shapes[1.0] == "1 x pentagon"

mf.plots.feature_graph_plot(feature_graph(best.weights[-1, 0], min_norm=0.2))

# %%
# GELU with a bias
# ----------------
#
# The sandbox: forty features, one at a time, in two dimensions. With ReLU and a bias features join one by one, up to fourteen and more.
# With GELU four or five are told apart, and all others die.

smooth = mf.models.ToyBank(mf.models.ToySpec(40, 2, activation="gelu"), seeds=(12, 1))
sandbox = fit(smooth, mf.data.OneHot(40), steps=50_000, lr=Schedule(0.001, 5.0, 2.0), record=Record(1, 1))
length = sandbox.weights[-1].norm(dim=-1)
alive = (length > 0.1 * length.amax(-1, keepdim=True)).sum(-1)
print("features alive:", alive.tolist(), "effective:", [f"{v:.2f}" for v in mf.superposition.k_eff(sandbox.final_loss, 40)])
assert set(alive.tolist()) <= {4, 5}

mf.plots.norm_bars(sandbox.weights[-1, 0], title="GELU with a bias: who is left")
