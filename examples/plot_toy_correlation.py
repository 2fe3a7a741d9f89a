"""
Features that come together
===========================

Features that are active together are kept apart; features that never are may share a line. *Toy Models of Superposition* shows both, and
what becomes of pairs that grow dense.
"""

# %%
# Together: at right angles
# -------------------------
#
# Two pairs of features in two dimensions; the features of a pair are always active together. Every one of the models puts them at right
# angles, where they do not disturb each other.

import plotly.graph_objects as go
import torch

import mechfeat as mf
from mechfeat.data import AnticorrelatedSets, CorrelatedSets
from mechfeat.plots.style import figure
from mechfeat.superposition import Record, Schedule, fit

rate = Schedule(0.01, 0.01, 0.0, warmup=0.0, decay="cosine")
SEEDS = 12


def trained(data: mf.data.ToyData, n: int, seeds: int = SEEDS) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights from small initial ones, and the loss of each model on the same inputs."""
    small = 0.2 * torch.randn(seeds, n, 2, generator=torch.Generator().manual_seed(0))
    bank = mf.models.ToyBank(mf.models.ToySpec(n, 2), seeds, init=small)
    run = fit(bank, data, steps=2000, lr=rate, batch=512, optimizer="adam", record=Record(1, 1))
    x = data.sample(torch.Generator().manual_seed(99), 20_000)
    with torch.no_grad():
        return run.weights[-1], (run.bank()(x) - x).square().mean((-2, -1))


def cosines(W: torch.Tensor) -> torch.Tensor:
    """Cosine of the two features of each pair."""
    unit = torch.nn.functional.normalize(W, dim=-1)
    return (unit[..., 0::2, :] * unit[..., 1::2, :]).sum(-1)


W, _ = trained(CorrelatedSets(4, set_size=2, density=0.05), 4)
print("largest cosine of a correlated pair:", f"{float(cosines(W).abs().max()):.3f}")
assert float(cosines(W).abs().max()) < 0.05

# %%
# Never together: on one line
# ---------------------------
#
# Of each pair at most one is active. In the best model each pair is antipodal, so that the other pair has a line of its own. Many of the
# models end elsewhere: with few dimensions the seed decides.

anti, losses = trained(AnticorrelatedSets(4, set_size=2, density=0.1), 4)
best = int(losses.argmin())
antipodal = int((cosines(anti) < -0.95).all(-1).sum())
print("cosines of the best:", [f"{v:.3f}" for v in cosines(anti)[best]], f"antipodal in {antipodal} of {SEEDS}")
assert float(cosines(anti)[best].max()) < -0.95

rows = {"correlated": W[0], "anticorrelated": anti[best]}
figure(
    [
        go.Scatter(
            x=V[:, 0].tolist(), y=V[:, 1].tolist(), mode="markers+text", text=["a", "a'", "b", "b'"], textposition="top center", name=name
        )
        for name, V in rows.items()
    ],
    title="Two pairs of features",
    yaxis_scaleanchor="x",
)

# %%
# Collapse
# --------
#
# Three pairs in two dimensions. While they are sparse each feature has its direction. As they grow dense, pairs give up telling their two
# features apart and collapse, one after the other, on the mean of the pair. In between the two kinds of models lose almost the same, so
# the mean over models tells more than the best one.

collapsed = {}
for density in (0.005, 0.05, 0.5):
    V, _ = trained(CorrelatedSets(6, set_size=2, density=density), 6, seeds=24)
    collapsed[density] = float((cosines(V) > 0.95).sum(-1).double().mean())
print("collapsed pairs of three, by density:", {k: f"{v:.2f}" for k, v in collapsed.items()})
assert collapsed[0.005] < 0.5 < collapsed[0.05] < 1.5 < 2.5 < collapsed[0.5]
