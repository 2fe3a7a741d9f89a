"""
Fractions of a dimension
========================

Features in superposition arrange themselves as polytopes, and each owns a fraction of a dimension that says which: half in a pair, two
thirds in a triangle, two fifths in a pentagon, three eighths in a square antiprism. Where training anneals its learning rate, the
fractions are exact, in a band of sparsities and nowhere else.
"""

# %%
# Ideal shapes
# ------------
#
# The dimensionality of each feature of six known arrangements, to rounding.

import itertools

import torch

import mechfeat as mf
from mechfeat.superposition import (
    NAMED_FRACTIONS,
    Record,
    Schedule,
    adversarial_vulnerability,
    feature_dimensionality,
    feature_graph,
    fit,
    grid,
    polytope,
)

for name, fraction in NAMED_FRACTIONS.items():
    if name in mf.superposition.POLYTOPES:
        found = feature_dimensionality(polytope(name).double())
        assert float((found - fraction).abs().max()) < 1e-12

# %%
# Trained models
# --------------
#
# Fifty features in five dimensions, as sparse as 1/(1 − S) says. Each dimension is used completely: the dimensionalities sum to five, at
# every level.

levels = (1.5, 2.3, 3.4, 5.1, 12.0, 40.0)
bank = grid(mf.models.ToySpec(50, 5), over={"density": [1 / v for v in levels]}, init="xavier")
data = mf.data.SparseUniform(50, density=bank.along("density"))
rate = Schedule(0.005, 0.005, 0.0, warmup=0.0, decay="cosine")
run = fit(bank, data, steps=4000, lr=rate, batch=256, optimizer="adam", record=Record(1, 1))
W, b = run.weights[-1], run.parameters["b"][-1]
D = feature_dimensionality(W)
fractions = torch.tensor(list(NAMED_FRACTIONS.values()))
shares = []
for k in range(len(levels)):
    there = W[k].norm(dim=-1) > 0.5
    shares.append(float(((D[k][there, None] - fractions).abs().amin(-1) <= 0.02).double().mean()))
print("sum of D:", [f"{v:.3f}" for v in D.sum(-1)], "at a named fraction:", [f"{v:.0%}" for v in shares])
assert float((D.sum(-1) / 5 - 1).abs().max()) < 0.01
assert sum(v >= 0.9 for v in shares[:4]) >= 2  # in the band
assert max(shares[4:]) < 0.5  # beyond it

mf.plots.dimensionality_scatter(W, torch.tensor(levels))

# %%
# Which features overlap with which splits a model into its polytopes, each in dimensions of its own.

graph = feature_graph(W[1])
print("factors:", [factor.name for factor in graph.factors])
mf.plots.feature_graph_plot(graph)

# %%
# Three controls
# --------------
#
# Near a fraction means little where anything is near one. Untrained weights, dimensionalities blurred by 0.05 and random ones fail the
# test that training passes.

trained = D[1][W[1].norm(dim=-1) > 0.5]
generator = torch.Generator().manual_seed(0)


def share(values: torch.Tensor) -> float:
    """Share of values within 0.02 of a named fraction."""
    return float(((values[:, None] - fractions).abs().amin(-1) <= 0.02).double().mean())


controls = {
    "untrained": share(feature_dimensionality(bank.W.detach()[0] * 0 + torch.randn(50, 5, generator=generator))),
    "blurred": share(trained + 0.1 * (torch.rand(trained.shape, generator=generator) - 0.5)),
    "random": share(torch.rand(1000, generator=generator)),
}
print("trained:", f"{share(trained):.0%}", {name: f"{v:.0%}" for name, v in controls.items()})
assert share(trained) >= 0.9
assert max(controls.values()) < 0.9

# %%
# Vulnerability
# -------------
#
# A small step of the input, chosen from the weights, hurts more the more features share a dimension. At full size, a row of the
# benchmarks, the two go together closely up to five features a dimension (a correlation of 0.96), and not beyond.

attack, per = [], W.square().sum((-2, -1)) / 5
for k, level in enumerate(levels):
    x = mf.data.SparseUniform(50, density=1 / level).sample(torch.Generator().manual_seed(k), 2000)
    attack.append(float(adversarial_vulnerability(W[k], b[k], x)))
print("features per dimension:", [f"{v:.1f}" for v in per], "vulnerability:", [f"{v:.2f}" for v in attack])
assert attack[-1] > 2 * attack[0]
assert all(later > 0.95 * earlier for earlier, later in itertools.pairwise(attack))
