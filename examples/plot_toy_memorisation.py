"""
From memorising data to learning features
=========================================

Trained on few inputs, a toy model gives each input a share of its hidden space; trained on many, it gives it to features. Between
the two it does neither, and its loss on new inputs peaks: a double descent. A small version of *Superposition, Memorization, and Double
Descent*.
"""

# %%
# A hundred features in two dimensions
# ------------------------------------
#
# Four features are active on average, and inputs have length 1. Each model sees a fixed list of inputs, at every step all of them; of three
# seeds the best is kept. The dimensionality of the hidden vectors of the inputs says how much of the space an input owns, and that of the
# rows of W how much a feature does.

import plotly.graph_objects as go
import torch

import mechfeat as mf
from mechfeat.data import FiniteSample, SparseUniform
from mechfeat.plots.style import figure
from mechfeat.superposition import Optimizer, Record, Schedule, feature_dimensionality, fit

N = 100
source = SparseUniform(N, density=0.04)
rate = Schedule(0.01, 0.01, 0.0, warmup=0.0, decay="cosine")
new = FiniteSample.draw(source, 3000, generator=torch.Generator().manual_seed(7), normalise=True).rows()
sizes = (4, 16, 40, 100, 600)
test, of_data = [], []
for size in sizes:
    data = FiniteSample.draw(source, size, generator=torch.Generator().manual_seed(1), normalise=True)
    bank = mf.models.ToyBank(mf.models.ToySpec(N, 2), 3, init="xavier")
    optimizer = Optimizer("adamw", weight_decay=0.01)
    best = fit(bank, data, steps=1500, lr=rate, optimizer=optimizer, record=Record(1, 1)).best()
    W = best.weights[-1, 0]
    with torch.no_grad():
        test.append(float((best.bank()(new)[0] - new).square().sum(-1).mean()))
    of_data.append(float(feature_dimensionality(data.rows() @ W).mean()))
print("test loss by number of inputs:", {n: f"{v:.2f}" for n, v in zip(sizes, test)})
print("dimensionality of an input:", {n: f"{v:.3f}" for n, v in zip(sizes, of_data)})
assert of_data[0] > 0.4 > 0.1 > of_data[2]
assert max(test) == max(test[1:-1])
assert max(test) > 1.2 * test[0]
assert max(test) > 1.2 * test[-1]

figure(
    [
        go.Scatter(x=list(sizes), y=test, name="loss on new inputs", mode="lines+markers"),
        go.Scatter(x=list(sizes), y=of_data, name="dimensionality of an input", mode="lines+markers"),
    ],
    title="Double descent of a toy model",
    x="inputs trained on",
    xaxis_type="log",
)
