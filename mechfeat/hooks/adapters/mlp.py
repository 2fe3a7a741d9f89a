"""Multilayer perceptrons and toy models: either side of each nonlinearity."""

from torch import nn

from mechfeat.hooks.adapters.base import Collected, join, walk

_NOT_HERE = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin)


def is_activation(m: nn.Module) -> bool:
    """Whether a module is an elementwise nonlinearity of torch.

    Args:
        m: The module.

    Returns:
        True for those of ``torch.nn.modules.activation`` that act on each element alone.
    """
    return type(m).__module__ == "torch.nn.modules.activation" and not isinstance(m, _NOT_HERE)


def collect(module: nn.Module, into: Collected) -> bool:
    """Roles of a network of linear layers and nonlinearities, and of toy models.

    ``pre`` is what a nonlinearity reads, ``post`` what it gives, ``hidden`` what the hidden layer holds: the same as ``post``
    in a perceptron, the bottleneck in a toy autoencoder.

    Args:
        module: The model.
        into: Where the roles go.

    Returns:
        Whether it is one.
    """
    modules = dict(walk(module))
    toys = [p for p, m in modules.items() if type(m).__name__ == "ToyAutoencoder"]
    for path in toys:  # its hook points are named by mf.point
        into.role("hidden", join(path, "hidden"))
        into.role("pre", join(path, "pre"))
    if not any(isinstance(m, nn.Linear) for m in modules.values()):
        return bool(toys)
    for path, m in modules.items():
        if path and is_activation(m):
            into.role("pre", _before(path, m, modules))
            into.role("post", path)
            into.role("hidden", path)
    return True


def _before(path: str, m: nn.Module, modules: dict[str, nn.Module]) -> str:
    """The layer whose output a nonlinearity reads where that is certain, else the nonlinearity's input."""
    parent, _, last = path.rpartition(".")
    row = modules[parent]
    if isinstance(row, nn.Sequential) and list(row.children()).count(m) == 1 and last.isdigit() and last != "0":
        before = join(parent, str(int(last) - 1))
        if isinstance(modules.get(before), nn.Linear):
            return before
    return f"{path}:in"
