"""
Which features will training move next?
=======================================

The tangent kernel says how training changes a network's outputs. It says as much of everything inside: of the activation along a
direction at any layer. Here fifty random feature directions of a small convolutional network are followed over the next twenty steps of
gradient descent, first by prediction, then in training; and then once more where the prediction fails, which the drift of the kernel tells.
"""

# %%
# A network, and fifty directions in its second convolution
# ---------------------------------------------------------
#
# A probe is the mean activation along one direction, over digits and positions.

import warnings

import torch

import mechfeat as mf

data = mf.data.digits()
x, y = data.x_train[:80], data.y_train[:80]
net = mf.models.DigitsCNN((64, 64), 128, generator=torch.Generator().manual_seed(0)).eval()
probes = mf.FeatureSet("conv2", torch.randn(50, 64, generator=torch.Generator().manual_seed(1)))

# %%
# In the kernel regime
# --------------------
#
# The change of all parameters is predicted from the kernel at the start: :math:`Δθ = J^\top α`. Each probe then moves by its own derivative
# along that change. No step of training is taken for it. ``predict_movement`` then trains a copy and compares. The null predicts from
# shuffled labels; part of early training moves all digits alike, so it is not at zero.

found = mf.ntk.predict_movement(net, x, y, probes, steps=[1, 5, 20], lr=3e-4)
print(found.report())
assert found.value >= 0.95
assert found.null is not None
assert found.value > found.null.max()
assert found.regime == "kernel regime"

mf.plots.movement(found)

# %%
# Where the prediction fails
# --------------------------
#
# With seventeen times the learning rate the kernel itself moves within twenty steps. The result says so: the verdict is *rich*, with a
# warning, and the correlation has fallen.

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    left = mf.ntk.predict_movement(net, x, y, probes, steps=20, lr=5e-3)
print(left.report())
assert any(issubclass(w.category, mf.ntk.RichRegimeWarning) for w in caught)
assert left.regime == "rich"
assert left.value < found.value

mf.plots.movement(left)

# %%
# Where on the image
# ------------------
#
# With ``positions="each"`` a probe is one direction at one position: the strongest of them say what training is about to change, and where.

direction = mf.FeatureSet("conv2", probes.directions[:1], ("direction 0",))
where = mf.ntk.predict_movement(net, x, y, direction, steps=20, lr=3e-4, positions="each", n_null=0, drift=False)
for name, predicted, actual in where.next(3):
    row, column = divmod(int(name.split()[-1]), 8)
    print(f"row {row}, column {column}: predicted {predicted:+.3f}, actual {actual:+.3f}")
assert where.value > 0.95

mf.plots.movement(where)
