"""
More features than dimensions
=============================

The basic results of *Toy Models of Superposition*: a linear model keeps the most important features and no more; with a ReLU, sparse
features share dimensions; and for two features in one dimension the boundary between the two can be derived.
"""

# %%
# Linear and ReLU
# ---------------
#
# Twenty features of falling importance in five dimensions, at three densities (the probability that a feature is active). The linear
# model holds five at each. The ReLU model holds five where features are dense, and more the sparser they are.

import torch

import mechfeat as mf
from mechfeat.superposition import Record, Schedule, fit, grid, mse, phase_diagram, superposition_boundary

densities = (1.0, 0.1, 0.01)
rate = Schedule(0.01, 0.01, 0.0, warmup=0.0, decay="cosine")
represented, ends = {}, {}
for activation in ("identity", "relu"):
    spec = mf.models.ToySpec(20, 5, activation=activation)
    bank = grid(spec, over={"density": densities}, init="xavier")
    data = mf.data.SparseUniform(20, density=bank.along("density"))
    options = {"loss": mse(0.7 ** torch.arange(20)), "batch": 512, "optimizer": "adam", "record": Record(1, 1)}
    run = fit(bank, data, steps=3000, lr=rate, **options)
    ends[activation] = run
    represented[activation] = (run.weights[-1].norm(dim=-1) > 0.5).sum(-1).tolist()
print("represented by density:", {name: dict(zip(densities, n)) for name, n in represented.items()})
assert represented["identity"] == [5, 5, 5]
assert represented["relu"][0] == 5 < represented["relu"][1] <= represented["relu"][2]

mf.plots.norm_bars(ends["relu"].weights[-1, 1])

# %%
# The linear model reconstructs what it holds, and predicts the mean of what it does not: half the density.

W, b = ends["identity"].weights[-1], ends["identity"].parameters["b"][-1]
there = W.norm(dim=-1) > 0.5
for k in (0, 1):
    assert float(b[k][there[k]].abs().max()) < 0.1 * densities[k]
    assert float((b[k][~there[k]] / (densities[k] / 2) - 1).abs().median()) < 0.1

# %%
# The overlaps of the sparsest model: features stand in opposite pairs and small polygons.

mf.plots.gram(ends["relu"].weights[-1, 2])

# %%
# A phase diagram with a boundary
# -------------------------------
#
# Two features, one dimension, one of them as important as 1. Sharing the dimension as an antipodal pair is better below the density
# :math:`4 J / (5 J + 2)`, where J is the importance of the other, or one over it if it is above 1. Trained models agree, here in 64 cells;
# the row of the benchmarks has 256.

diagram = phase_diagram(
    importance=torch.logspace(-1, 1, 8, dtype=torch.float64), density=torch.logspace(0, -2, 8, dtype=torch.float64), n_models=4, steps=700
)
print(f"cells as derived: {diagram.agreement:.0%}, away from the boundary {diagram.agreement_away:.0%}")
assert diagram.agreement >= 0.9
assert diagram.agreement_away >= 0.95
assert abs(float(superposition_boundary(torch.tensor(1.0))) - 4 / 7) < 1e-6

mf.plots.phase_map(diagram)
