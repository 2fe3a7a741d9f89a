"""
A saddle on the way down
========================

The notebook hessian_analysis of FeatureFinding: forty features in two dimensions, ReLU(z + 1), in float64. Training rests on a
plateau for thousands of steps and then leaves it. The plateau looks like a minimum, and the Hessian says that it is not.
"""

# %%
# Two features merge
# ------------------
#
# Features 12 and 24 of seed 2 come together until a ten-thousandth of their length is too much to tell them apart, and later part again.

import plotly.graph_objects as go
import torch

import mechfeat as mf
from mechfeat.plots.style import figure
from mechfeat.superposition import Record, Schedule, escape_rates, fit, run_spectrum

EVERY = 500
schedule = Schedule(0.001, 4.0, 1.0, steps=300_000)
bank = mf.models.ToyBank(mf.models.ToySpec(40, 2, shift=1.0), seeds=[2], dtype=torch.float64)
run = fit(bank, mf.data.OneHot(40), steps=24_000, lr=schedule, record=Record(frames=49, losses=49))
apart = (run.weights[:, 0, 12] - run.weights[:, 0, 24]).norm(dim=-1)
print(f"distance: {float(apart[0]):.1e} at first, {float(apart.min()):.1e} at the closest, {float(apart[-1]):.2f} at the end")
assert float(apart.min()) < 1e-4 < 0.5 < float(apart[-1])

figure(
    go.Scatter(x=run.steps.tolist(), y=apart.tolist()),
    title="Distance of features 12 and 24",
    x="step",
    yaxis_type="log",
)

# %%
# The rate of escape
# ------------------
#
# While they part, their distance grows as :math:`\exp(-\eta \lambda t)`, with the learning rate :math:`\eta` and the eigenvalue
# :math:`\lambda` of that direction. The growth says what it must be; the smallest eigenvalue of the Hessian says what it is. When the
# escape begins depends on rounding; its rate does not.

growing = [k for k in range(int(apart.argmin()) + 2, len(apart)) if 1e-6 < apart[k] < 1e-3]
windows = growing[-5::2]
steps = run.steps[windows]
rates = escape_rates(apart[windows], steps, torch.tensor([schedule(t, 0) for t in range(24_000)], dtype=torch.float64))
middles = [int(run.steps[k]) for k in growing[-4::2]]
spectrum = run_spectrum(run, at=[*middles, 24_000])
off = rates.relative_errors(spectrum.smallest[:-1])
print("implied:", [f"{v:.2e}" for v in rates.eigenvalues], "Hessian:", [f"{v:.2e}" for v in spectrum.smallest[:-1]])
print("negative eigenvalues:", spectrum.n_negative().tolist())
assert float(off.max()) <= 0.03
assert int(spectrum.n_negative()[:-1].min()) >= 5
assert int(spectrum.n_negative()[-1]) <= 2

mf.plots.spectrum_movie(spectrum)

# %%
# The escape is a fall of the loss, and the two features are among those whose dimensionality changes with it.

plateau, end = float(run.losses[growing[-1], 0]), float(run.final_loss[0])
print(f"loss {plateau:.5f} on the plateau, {end:.5f} after it")
assert end < 0.98 * plateau

mf.plots.loss_events(run)
