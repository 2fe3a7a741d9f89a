"""
One analysis, three families
============================

A convolutional network, a transformer and a perceptron learn to tell one digit from the others. The same function asks each of them:
is there a direction for the digit, what happens along it, does the network use it, and which weights read it? Only hook names differ.
"""

# %%
# The analysis
# ------------
# It records, probes, steers, ablates, and reads weights. Nothing in it knows what kind of network it looks at.

import plotly.graph_objects as go
import torch
from torch import nn

import mechfeat as mf


def odds(logits):
    return logits[:, 1] - logits[:, 0]


def analyse(net, x, has, hook, reader):
    model = mf.HookedModel(net)
    with torch.no_grad():
        logits, cache = model.run_with_cache(x, hook)
        samples = cache.samples(hook, positions="mean")
        found = mf.probes.difference_of_means(samples, has, name="the digit")
        step = float(found.feature.project(samples).std())
        curve = [odds(model.run_with_hooks(x[~has], mf.Steer(hook, found.feature, k * step))).mean().item() for k in range(-3, 4)]
        removed = mf.evidence.ablation_effect(model, found.feature, x, odds, on=has, n_null=100)
        weights = mf.circuits.direct_weights(model, hook, reader, x, units=[1], n_null=20, n_boot=20)
        assert torch.equal(logits, net(x))
    return found, curve, removed, weights


# %%
# The networks
# ------------
# The transformer reads an image as eight rows of eight pixels.


class RowsTransformer(nn.Module):
    def __init__(self, d_model=32):
        super().__init__()
        self.embed, self.pos = nn.Linear(8, d_model), nn.Parameter(0.1 * torch.randn(8, d_model))
        self.block = nn.TransformerEncoderLayer(d_model, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(d_model, 2)

    def forward(self, x):
        return self.head(self.block(self.embed(x.squeeze(1)) + self.pos).mean(1))


DIGIT = 6
data = mf.data.digits()
is_digit, labels = data.y_test == DIGIT, (data.y_train == DIGIT).long()
torch.manual_seed(0)
families = {
    "CNN": (mf.models.DigitsCNN((8, 16), n_classes=2), "relu3", "fc2"),
    "transformer": (RowsTransformer(), "block", "head"),
    "perceptron": (nn.Sequential(nn.Flatten(), *mf.models.mlp([64, 32, 2])), "2", "3"),
}

# %%
# The answers
# -----------

fig = go.Figure()
for name, (net, hook, reader) in families.items():
    mf.models.train(net, data.x_train, labels, epochs=6, generator=torch.Generator().manual_seed(0))
    found, curve, removed, weights = analyse(net.eval(), data.x_test, is_digit, hook, reader)
    print(f"{name}: {found.summary()}")
    print(f"  removing it: {removed.summary()}")
    print(f"  read by the logit with {weights.weights.shape[1]} weights, most by channel {weights.strongest(1, 1)[0][0]}")
    assert found.established
    assert removed.value > removed.null.median()  # more than random directions of the same covariance
    assert curve == sorted(curve)  # the further along the direction, the more the network sees the digit
    fig.add_scatter(x=list(range(-3, 4)), y=curve, mode="lines+markers", name=name)

# %%
# Steering images of other digits along the direction moves every network towards the digit.

fig.update_layout(
    template="plotly_white",
    title="Log-odds of the digit on images of other digits",
    xaxis_title="steps along the direction [standard deviations]",
    yaxis_title="mean log-odds [nats]",
)
fig
