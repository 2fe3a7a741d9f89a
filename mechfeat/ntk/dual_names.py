"""Under which names torch has the activation functions."""

import torch
import torch.nn.functional as F
from torch import nn

from mechfeat.models.text.activations import FUNCTIONS, Function, LeakyReLU, activation

_ALIASES: dict[Function, str] = {
    **{f: name for name, f in FUNCTIONS.items()},
    F.relu: "relu",
    F.tanh: "tanh",
    F.sigmoid: "sigmoid",
    torch.special.erf: "erf",
    F.leaky_relu: "leaky_relu",
}
_MODULES = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.SiLU: "silu", nn.Sigmoid: "sigmoid", nn.Identity: "linear"}


def resolved(phi: str | Function) -> tuple[Function, str]:
    """The function that a name, a torch function or a module of torch stands for.

    Args:
        phi: One of these, or any other function.

    Returns:
        The function, and its name.
    """
    if isinstance(phi, nn.Module):
        known = _MODULES.get(type(phi))
        if isinstance(phi, nn.LeakyReLU):
            return LeakyReLU(phi.negative_slope), "leaky_relu"
        if isinstance(phi, nn.GELU) and phi.approximate == "none":
            known = "gelu"
        if isinstance(phi, nn.Softplus) and phi.beta == 1 and phi.threshold == 20:
            known = "softplus"
        return (FUNCTIONS[known], known) if known else (phi, type(phi).__name__)
    if isinstance(phi, LeakyReLU):
        return phi, "leaky_relu"
    function = activation(phi)
    name = phi if isinstance(phi, str) else _ALIASES.get(function)
    return (FUNCTIONS[name], name) if name else (function, getattr(function, "__name__", type(function).__name__))
