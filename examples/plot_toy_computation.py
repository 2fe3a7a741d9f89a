"""
Computing while compressing
===========================

Toy models that compute something of their features instead of giving them back: absolute values, ANDs of pairs, every AND at once. The
notebook computation of FeatureFinding and the section on computation of *Toy Models of Superposition*.
"""

# %%
# The absolute value
# ------------------
#
# Three features between −1 and 1, six neurons, two layers. The solution is one neuron for each feature and sign. Some seeds find it, some
# leave a neuron dead.

import itertools
import random

import plotly.graph_objects as go
import torch

import mechfeat as mf
from mechfeat.data import OneHot, SparseUniform, absolute, ands
from mechfeat.plots.style import figure
from mechfeat.superposition import Record, Schedule, fit

rate = Schedule(0.01, 0.01, 0.0, warmup=0.0, decay="cosine")
two_layers = mf.models.ToySpec(3, 6, tied=False, hidden_activation="relu")
signed = SparseUniform(3, density=1.0, low=-1.0, high=1.0)
run = fit(mf.models.ToyBank(two_layers, 12), signed, task=absolute(), steps=3000, lr=rate, batch=128, optimizer="adam", record=Record(1, 1))
best = run.best()
W = best.weights[-1, 0]
owner = W.abs().argmax(0)
neurons = sorted(f"|x{int(f)}| {'+' if W[f, k] > 0 else '-'}" for k, f in enumerate(owner))
solved = int((run.final_loss < 1e-5).sum())
print(f"best loss {float(best.final_loss[0]):.1e}, {solved} of 12 below 1e-5; neurons of the best: {neurons}")
assert solved >= 1
assert len(set(neurons)) == 6

mf.plots.stack_plot(W)

# %%
# ANDs of pairs
# -------------
#
# Twenty pairs of ten binary inputs, at most three of them on: 175 inputs. With as many neurons as pairs all are exact. With fewer,
# fewer are: sparsity does not make them free.

pairs = random.Random(0).sample(list(itertools.combinations(range(10), 2)), 20)
on = [c for k in (1, 2, 3) for c in itertools.combinations(range(10), k)]
x = torch.stack([torch.zeros(10).index_fill_(0, torch.tensor(c), 1.0) for c in on])
assert len(x) == 175
data = mf.data.FiniteSample(10, x)
exact = {}
for m in (4, 12, 20):
    spec = mf.models.ToySpec(10, m, n_outputs=20, tied=False, activation="identity", hidden_activation="relu", hidden_bias=True)
    found = fit(mf.models.ToyBank(spec, 6), data, task=ands(pairs), steps=2500, lr=rate, optimizer="adam", record=Record(1, 1)).best()
    with torch.no_grad():
        right = (found.bank()(x)[0] > 0.5) == (ands(pairs)(x) > 0.5)
    exact[m] = float(right.all(0).double().mean())
print("exact ANDs by neurons:", exact)
assert exact[4] < exact[12] < exact[20] == 1

# %%
# Every AND at once
# -----------------
#
# A construction instead of training: each neuron sees a random set of features and is on when two of them are. The AND of two features is
# read as the mean over the neurons that see both. Three of sixty features are on; the error falls as neurons are added.

generator = torch.Generator().manual_seed(0)
active = torch.rand(200, 60, generator=generator).topk(3, dim=1).indices
x = torch.zeros(200, 60).scatter_(1, active, 1.0)
target = x[:, :, None] * x[:, None]
off = ~torch.eye(60, dtype=torch.bool)
errors = {}
for n in (100, 300, 1000):
    sees = (torch.rand(n, 60, generator=generator) < n ** (-1 / 3)).to(x)
    z = torch.relu(x @ sees.T - 1)
    read = torch.einsum("si, ia, ib -> sab", z, sees, sees) / (sees.T @ sees).clamp_min(1)
    errors[n] = float((read - target).abs()[:, off].mean())
print("mean error by neurons:", {n: f"{e:.3f}" for n, e in errors.items()})
assert errors[100] > errors[300] > errors[1000]

figure(
    go.Scatter(x=list(errors), y=list(errors.values()), mode="lines+markers"),
    title="Every AND of sixty features",
    x="neurons",
    y="mean error",
    xaxis_type="log",
)

# %%
# What the notebook trains
# ------------------------
#
# The notebook defines ANDs and trains an autoencoder of three active features of ten in two dimensions. Its loss rests at about 0.18, where
# predicting zero costs 0.30.

tied = mf.models.ToySpec(10, 2, out_bias=False)
auto = fit(mf.models.ToyBank(tied, seeds=(3, 4, 5)), OneHot(10, k=3), steps=4000, lr=Schedule(0.01, 0.1, 0.03), record=Record(1, 2))
print("loss:", [f"{v:.4f}" for v in auto.final_loss])
assert bool(((auto.final_loss > 0.17) & (auto.final_loss < 0.19)).all())

# %%
# Neurons that mean one thing
# ---------------------------
#
# With a ReLU on the hidden layer the neurons are a privileged basis. Dense features get a neuron each; sparse ones share. Of a
# number of models the best is shown, since most end in worse arrangements.

importance = 0.75 ** torch.arange(10)
counts = {}
for density in (1.0, 0.03):
    spec = mf.models.ToySpec(10, 5, hidden_activation="relu")
    models = mf.models.ToyBank(spec, 16, init="xavier")
    options = {"loss": mf.superposition.mse(importance), "batch": 256, "optimizer": "adam", "record": Record(1, 20)}
    found = fit(models, SparseUniform(10, density=density), steps=3000, lr=rate, **options)
    one = int(found.losses[-5:].mean(0).argmin())
    W = found.weights[-1, one]
    alive = W.norm(dim=0) > 0.1
    single = W.square().amax(0) / W.square().sum(0).clamp_min(1e-12) > 0.9
    counts[density] = int((single & alive).sum())
print("monosemantic neurons by density:", counts)
assert counts[1.0] == 5
assert counts[0.03] <= 1

mf.plots.stack_plot(W, title="Sparse features share neurons")
