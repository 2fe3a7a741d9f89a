"""
A direction for a digit, and what the network does with it
==========================================================

A small convolutional network learns handwritten digits. Is there a direction in its hidden layer that means "this is a three",
and does the read-out use it? Both answers are findings: they come with a null, an interval and a reliability.
"""

# %%
# The network
# -----------
#
# :class:`~mechfeat.models.DigitsCNN` has a module for every step, so every step has a hook point. The data are the digits that
# scikit-learn ships.

import torch

import mechfeat as mf

DIGIT = 3
data = mf.data.digits()
net = mf.models.DigitsCNN(generator=torch.Generator().manual_seed(0))
losses = mf.models.train(net, data.x_train, data.y_train, epochs=4, generator=torch.Generator().manual_seed(0))
model = mf.HookedModel(net.eval())

# %%
# ``describe`` calls the model once and lists its hook points.

table = model.describe(data.x_test)
print(table)
assert all(row.reached for row in table)

# %%
# Recording
# ---------
#
# One run records the hidden layer after its ReLU. Recording does not change what the network computes: the logits are equal bit
# for bit to those of a plain call. More than nine in ten held-out digits are read correctly.

with torch.no_grad():
    logits, cache = model.run_with_cache(data.x_test, "relu3")
    assert torch.equal(logits, net(data.x_test))
accuracy = (logits.argmax(1) == data.y_test).float().mean().item()
print(cache)
print(f"accuracy {accuracy:.3f}")
assert accuracy > 0.9

# %%
# A direction
# -----------
#
# The direction runs from the mean activation of the other digits to that of the threes. Part of the inputs is kept back, and the
# direction is scored on them by its AUROC. The null repeats all of this with permuted labels, which scores about one half.

is_digit = data.y_test == DIGIT
three = mf.probes.difference_of_means(cache.samples("relu3"), is_digit, name=f"digit {DIGIT}")
print(three.summary())
assert three.established
assert three.value > 0.95
assert three.null is not None
assert abs(three.null.median().item() - 0.5) < 0.05

mf.plots.projection(three)

# %%
# What the network does with it
# -----------------------------
#
# A direction that separates inputs need not be used. ``ablation_effect`` holds the component along it at its mean, and measures how
# far the log-odds of the digit fall on images of it. The null does the same to random directions with the covariance of the
# activations, which carry as much of what the network computes as a typical activation does.


def log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Log-odds of the digit against all others, in nats."""
    others = torch.cat([logits[:, :DIGIT], logits[:, DIGIT + 1 :]], dim=1)
    return logits[:, DIGIT] - others.logsumexp(1)


x, on = data.x_test[:250], is_digit[:250]
effect = mf.evidence.ablation_effect(model, three.feature, x, log_odds, on=on, n_null=60)
print(effect.summary())
assert effect.established
assert effect.null is not None
assert effect.value > effect.null.max()

# %%
# The log-odds fall further than for any of the sixty random directions.

mf.plots.ablation(effect, metric=f"log-odds of {DIGIT} [nats]")
