"""
Polygons, and where descent rests
=================================

Six features in the plane, one of them active at a time: regular polygons are points where the gradient vanishes, and stochastic gradient
descent rests at some of them, one after another. The setting of *Dynamical versus Bayesian Phase Transitions in a Toy Model of
Superposition*.
"""

# %%
# Regular polygons are critical points
# ------------------------------------
#
# With one active feature of uniform value the expected loss is a closed form, kinks of the ReLU included. A regular polygon is polished by
# Newton's method; features without a corner have no weight and the bias 1/12, the mean of a feature.

import math

import plotly.graph_objects as go
import torch

import mechfeat as mf
from mechfeat.plots.style import GREY, figure
from mechfeat.superposition import Record, fit, local_learning_coefficient, one_active_loss


def loss(p):
    """Of W, row by row, and then b."""
    return one_active_loss(p[..., :12].unflatten(-1, (6, 2)), p[..., 12:])


def gradient(p):
    """Of each point."""
    p = p.detach().requires_grad_(True)
    return torch.autograd.grad(loss(p).sum(), p)[0]


def polish(p):
    """Newton's method, with flat directions left as they are."""
    p = p.double()
    for _ in range(30):
        values, vectors = torch.linalg.eigh(torch.func.jacrev(torch.func.jacrev(loss))(p))
        steep = values.abs() > 1e-7
        step = vectors @ torch.where(steep, vectors.mT @ gradient(p) / torch.where(steep, values, 1.0), 0.0)
        p = p - step * min(1.0, 0.1 / max(float(step.norm()), 1e-30))
    return p


corners, gons = {}, {}
for k in (2, 3, 4, 5, 6):
    angle = 2 * math.pi * torch.arange(k, dtype=torch.float64) / k
    W = torch.zeros(6, 2, dtype=torch.float64)
    W[:k] = (1.2 if k == 6 else 1.1) * torch.stack([angle.cos(), angle.sin()], -1)
    b = torch.full((6,), 1 / 12, dtype=torch.float64)
    b[:k] = -0.3 if k == 6 else -0.1
    gons[k] = polish(torch.cat([W.flatten(), b]))
    corners[k] = float(loss(gons[k]))
    assert float(gradient(gons[k]).norm()) < 1e-8
print("loss by corners:", {k: f"{v:.4f}" for k, v in corners.items()})
assert list(corners.values()) == sorted(corners.values(), reverse=True)

# %%
# Plateaus of descent
# -------------------
#
# From tiny weights the models first learn the mean of the inputs and rest there. They leave it for a square or for a pentagon.
# Some rest on the way at a pentagon one corner of which is two features: a saddle, which they leave when one of the two gives way.
# Dotted lines are the losses of the regular polygons, from two corners at the top to six.

init = {"W": 0.001 * torch.randn(12, 6, 2, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(12, 6)}
data = mf.data.AnticorrelatedSets(6, set_size=6, density=1.0)
bank = mf.models.ToyBank(mf.models.ToySpec(6, 2), 12, init=init)
run = fit(bank, data, steps=14_000, lr=0.1, batch=32, record=Record(281, 2))
frames = torch.cat([run.weights.flatten(-2), run.parameters["b"]], -1).double()
falling = loss(frames)
shown = (0, 4, 5)
for i in shown:
    print(f"model {i}: loss after 500, 6,000 and 14,000 steps", [f"{v:.4f}" for v in falling[[10, 120, 280], i]])
mean = 1 / 3 - 6 / 144
assert float((falling[10] - mean).abs().max()) < 0.002
ends = torch.stack([(falling[280] - v).abs() for v in (corners[4], corners[5])]).amin(0)
assert float(ends.max()) < 0.002

levels = [
    go.Scatter(x=[0, 14_000], y=[v, v], name=f"{k} corners", mode="lines", line={"dash": "dot", "color": GREY, "width": 1})
    for k, v in corners.items()
]
figure(
    [go.Scatter(x=run.steps.tolist(), y=falling[:, i].tolist(), name=f"model {i}", mode="lines") for i in shown] + levels,
    title="Descent rests at critical points",
    x="step",
    y="exact loss",
    yaxis_type="log",
)

# %%
# How degenerate they are
# -----------------------
#
# The local learning coefficient is estimated by sampling around a point, here along model 4: the mean, the shared corner, the pentagon. It
# rises while the loss falls. Only the last of the three is a minimum. The localisation of 100 keeps chains at the saddles, and pulls every
# value down: read the order, not the values.

at = {"mean of inputs": 10, "shared corner": 120, "pentagon": 280}
found = {}
for name, frame in at.items():
    found[name] = local_learning_coefficient(
        loss, polish(frames[frame, 4]), n=1000, step_size=4e-4, localisation=100.0, n_chains=32, n_burn=300, n_steps=700
    )
for name, c in found.items():
    print(f"{name}: {c.value:.2f} ± {c.standard_error:.2f}")
first, second, third = found.values()
assert first.value + 4 * first.standard_error < second.value
assert second.value + 2 * math.hypot(second.standard_error, third.standard_error) < third.value

figure(
    go.Bar(
        x=list(found),
        y=[c.value for c in found.values()],
        error_y={"type": "data", "array": [2 * c.standard_error for c in found.values()]},
    ),
    title="Learning coefficient along one run",
    y="estimate, ± 2 standard errors",
)
