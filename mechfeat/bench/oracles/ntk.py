"""Literal empirical neural tangent kernel: one backward pass a sample and output, then one inner product an entry.

Written from the definition, for comparison only: it knows neither captures nor rules nor contractions. Works in the
dtype of the model, which should be float64. The outputs of the model are flattened to one axis.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def jacobian(module: nn.Module, x: Any) -> dict[str, Float[Tensor, "n o p"]]:
    """Gradients of every output of every sample with respect to every trainable parameter.

    Args:
        module: The model; it is run on the whole batch.
        x: A batch.

    Returns:
        Parameter name → gradients, each flattened to one axis; zero where an output does not depend on the parameter.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        y = module(x.clone()).reshape(len(x), -1)
        n, o = y.shape
        J = {name: y.new_zeros(n, o, p.numel(), requires_grad=False) for name, p in parameters.items()}
        for i in range(n):
            for j in range(o):
                if not y.requires_grad:
                    continue
                gradients = torch.autograd.grad(y[i, j], list(parameters.values()), retain_graph=True, allow_unused=True)
                for name, g in zip(parameters, gradients):
                    if g is not None:
                        J[name][i, j] = (g.to_dense() if g.is_sparse else g).reshape(-1)
    return J


def empirical_ntk(module: nn.Module, x1: Any, x2: Any = None, *, outputs: str = "full") -> dict[str, Float[Tensor, "..."]]:
    r"""Inner products of those gradients, parameter by parameter. The kernel is the sum of the values.

    .. math:: Θ_{no,mp} = \sum_θ \Big\langle \frac{∂ f_o(x_n)}{∂θ}, \frac{∂ f_p(x'_m)}{∂θ} \Big\rangle

    Args:
        module: The model.
        x1: A batch.
        x2: Another batch; ``x1`` itself by default.
        outputs: ``full`` for ``[n1 o n2 o]``, ``trace`` for the sum over equal outputs ``[n1 n2]``, ``diagonal`` for
            ``[n1 n2 o]``.

    Returns:
        Parameter name → its part.

    Source:
        Jacot et al. 2018, *Neural Tangent Kernel*, section 4.
    """
    J1 = jacobian(module, x1)
    J2 = J1 if x2 is None else jacobian(module, x2)
    parts = {}
    for name in J1:
        a, b = J1[name], J2[name]
        (n, o, _), m = a.shape, len(b)
        full = a.new_zeros(n, o, m, o)
        for i in range(n):
            for j in range(o):
                full[i, j] = (b * a[i, j]).sum(-1)
        diagonal = torch.stack([full[:, j, :, j] for j in range(o)], -1)
        parts[name] = {"full": full, "diagonal": diagonal, "trace": diagonal.sum(-1)}[outputs]
    return parts
