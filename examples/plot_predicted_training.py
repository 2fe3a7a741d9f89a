"""
What training will do, foretold by the tangent kernel
=====================================================

A network that is linear in its parameters is moved by gradient descent through its tangent kernel alone. A real network is linear for a
while. Here the kernel of a small convolutional network, computed before training, predicts what training does to held-out digits; then
the network is trained, and the two are compared.
"""

# %%
# Two networks
# ------------
#
# :class:`~mechfeat.models.DigitsCNN` in its usual width, and four times as wide. Both are to learn a hundred digits by gradient descent on
# cross-entropy, over the full batch.

import torch

import mechfeat as mf

data = mf.data.digits()
x_train, y_train, x_test = data.x_train[:100], data.y_train[:100], data.x_test[:60]


def network(width: int) -> torch.nn.Module:
    """A digits CNN with as many channels, twice as many hidden neurons, and fixed random weights."""
    return mf.models.DigitsCNN((width, width), 2 * width, generator=torch.Generator().manual_seed(0)).eval()


STEPS = (1, 3, 10, 30, 100)
RATE = 6e-4
narrow, wide = network(16), network(64)

# %%
# From the kernel alone
# ---------------------
#
# Two kernels are all that is needed: of the training digits with themselves, and of the held-out digits with them.
# :class:`~mechfeat.ntk.KernelDynamics` then takes the steps of gradient descent in the space of outputs. No parameter moves.

theta = mf.ntk.empirical_ntk(wide, x_train)
cross = mf.ntk.empirical_ntk(wide, x_test, x_train)
with torch.no_grad():
    f0, f0_test = wide(x_train), wide(x_test)
training = mf.ntk.KernelDynamics(theta, y_train, loss="softmax", lr=RATE, f0=f0)
print(f"each step lowers the loss of the linearised network up to a learning rate of {training.lr_limit:.2e}")
foretold = training.at(100, cross, f0_test)
assert training.lr_limit > RATE

# %%
# Against training
# ----------------
#
# ``predict_training`` does the same, trains a copy of the network and compares. Its value is the share of the movement of the held-out
# outputs that was foreseen: 1 at best, and 0 for the prediction that nothing moves. The null predicts from shuffled labels; much
# of early training moves all digits alike, whatever their labels, and so the null is high.

found = mf.ntk.predict_training(wide, x_train, y_train, x_test, loss="softmax", lr=RATE, steps=STEPS)
print(found.summary())
torch.testing.assert_close(found.predicted[-1], foretold)
assert found.established
assert found.null is not None
assert found.value > 0.9
assert found.value > found.null.max()

# %%
# Each point is one output of one held-out digit. On the line the network does what the kernel said.

mf.plots.predicted_outputs(found)

# %%
# Where it departs
# ----------------
#
# The prediction holds as long as the kernel stays where it was. After one step the wide network is off by less than a fiftieth of the
# movement; after a hundred steps by more than a tenth, and its kernel has moved by more than that. At the same share of the stability
# limit the narrow network leaves its kernel sooner, at every number of steps.

limit = mf.ntk.KernelDynamics(mf.ntk.empirical_ntk(narrow, x_train), y_train, loss="softmax", lr=1e-9).lr_limit
rate = RATE * limit / training.lr_limit
left = mf.ntk.predict_training(narrow, x_train, y_train, x_test, loss="softmax", lr=rate, steps=STEPS)
for name, one in (("narrow", left), ("wide", found)):
    print(name, *(f"{error:.1%} at {k}" for k, error in zip(one.steps, one.relative_errors)), f"kernel moved {one.drift:.0%}", sep=", ")
assert found.relative_errors[0] < 0.02
assert found.relative_errors[-1] > 0.1
assert bool((left.relative_errors > found.relative_errors).all())
assert found.drift is not None
assert left.drift is not None
assert 0.1 < found.drift < left.drift

mf.plots.prediction_error({"16 channels": left, "64 channels": found})
