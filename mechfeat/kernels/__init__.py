"""Contractions of Jacobian factors. They know tensors, not models.

The gradient of output ``o`` of sample ``n`` with respect to one weight is a sum of outer products over positions,
``Σ_t left[n, o, t, :] ⊗ right[n, t, :]``. :func:`block`, :func:`gram` and :func:`mixed` turn two such families into a kernel in three
orders; :func:`dense` takes gradients that are already there.
"""

from mechfeat.kernels.contract import Other, Right, block, dense
from mechfeat.kernels.dispatch import gram, mixed
from mechfeat.kernels.layout import Outputs, kernel_shape, new_kernel
from mechfeat.kernels.symmetric import mirror

__all__ = ["Other", "Outputs", "Right", "block", "dense", "gram", "kernel_shape", "mirror", "mixed", "new_kernel"]
