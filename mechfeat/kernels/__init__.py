"""Contractions of Jacobian factors. They know tensors, not models.

The gradient of output ``o`` of sample ``n`` with respect to one weight is a sum of outer products over positions,
``Σ_t left[n, o, t, :] ⊗ right[n, t, :]``. :func:`block` and :func:`gram` turn two such families into a kernel in two orders;
:func:`dense` takes gradients that are already there.
"""

from mechfeat.kernels.contract import Other, Outputs, Right, block, dense, gram, kernel_shape

__all__ = ["Other", "Outputs", "Right", "block", "dense", "gram", "kernel_shape"]
