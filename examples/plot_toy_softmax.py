"""
Concentric circles: what a softmax can read
===========================================

A softmax over linear outputs picks the largest, so that features may differ in length alone, if a bias makes up for it. The notebook
1d-softmax of FeatureFinding, and the contrast that its notes state.
"""

# %%
# Twenty features on a line
# -------------------------
#
# Tied weights, one hidden dimension, an output bias. In three of four seeds or more every feature is told from every other; and in all
# the bias is quadratic in the weight: the logits are :math:`-(w_i - w_j)^2 / 2` up to a constant, and the model is a
# nearest-neighbour code.

import plotly.graph_objects as go
import torch

import mechfeat as mf
from mechfeat.plots.style import figure
from mechfeat.superposition import Record, Schedule, cross_entropy, fit


def top1(bank: mf.models.ToyBank) -> torch.Tensor:
    """Share of features whose own output is the largest, for each instance."""
    n = bank.spec.n_features
    with torch.no_grad():
        return (bank(torch.eye(n)).argmax(-1) == torch.arange(n)).double().mean(-1)


spec = mf.models.ToySpec(20, 1, activation="identity")
line = mf.models.ToyBank(spec, seeds=(12, 1, 2, 3))
run = fit(line, mf.data.OneHot(20), steps=20_000, lr=Schedule(0.2, 0.8, 0.2), loss=cross_entropy(), record=Record(1, 2))
w, b = run.weights[-1, :, :, 0], run.parameters["b"][-1]
fits = [float(torch.corrcoef(torch.stack([w[i].square(), b[i]]))[0, 1]) for i in range(4)]
print("top-1:", top1(run.bank()).tolist(), "correlation of w² and b:", [f"{c:.5f}" for c in fits])
assert int((top1(run.bank()) == 1).sum()) >= 3
assert max(fits) < -0.99

figure(
    go.Scatter(x=w[0].tolist(), y=b[0].tolist(), mode="markers"),
    title="Bias against weight of twenty features",
    x="weight",
    y="bias",
)

# %%
# Two active features are not a longer one
# ----------------------------------------
#
# With two of twenty active, and targets that sum to two, the same model gets stuck far above the floor of 2 ln 2 = 1.39.

both = mf.models.ToyBank(spec, seeds=(12, 1, 2, 3))
pairs = fit(both, mf.data.OneHot(20, k=2), steps=4000, lr=Schedule(0.2, 0.8, 0.2), loss=cross_entropy(), record=Record(1, 2))
print("loss with two active:", [f"{v:.2f}" for v in pairs.final_loss])
assert float(pairs.final_loss.min()) > 5

# %%
# Without bias
# ------------
#
# In two dimensions, forty features without a bias: tied weights must put all of them on one circle and lose some; an unembedding of its own
# can be long where the embedding is short, and reads all.

rate = Schedule(0.005, 2.0, 0.1)
ends = {}
for tied in (True, False):
    bare = mf.models.ToySpec(40, 2, activation="identity", out_bias=False, tied=tied)
    models = mf.models.ToyBank(bare, seeds=(12, 1, 2, 3))
    ends[tied] = fit(models, mf.data.OneHot(40), steps=15_000, lr=rate, loss=cross_entropy(), record=Record(1, 2))
    print("tied" if tied else "untied", "top-1:", [f"{v:.2f}" for v in top1(ends[tied].bank())])
assert bool((top1(ends[True].bank()) < 1).all())
assert int((top1(ends[False].bank()) == 1).sum()) >= 3

rows = {"tied": ends[True].weights[-1, 0], "untied": ends[False].weights[-1, 0]}
figure(
    [go.Scatter(x=W[:, 0].tolist(), y=W[:, 1].tolist(), mode="markers", name=name) for name, W in rows.items()],
    title="Embeddings of forty features, read by a softmax",
    yaxis_scaleanchor="x",
)
