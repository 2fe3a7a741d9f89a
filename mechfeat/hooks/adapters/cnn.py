"""Convolutional networks: layers by type, blocks by what they are made of."""

from torch import nn

from mechfeat.hooks.adapters.base import Collected, child, children, walk
from mechfeat.hooks.adapters.mlp import is_activation

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm, nn.LayerNorm)
_POOLS = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)


def collect(module: nn.Module, into: Collected) -> bool:
    """Roles of a network with convolutions.

    Args:
        module: The model.
        into: Where the roles go.

    Returns:
        Whether it is one.
    """
    if not any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules()):
        return False
    modules = dict(walk(module))
    blocks = [p for p, m in modules.items() if p and _is_block(m, modules.get(p.rpartition(".")[0]))]
    for path, m in modules.items():
        if isinstance(m, nn.modules.conv._ConvNd):
            into.role("conv", path or ":out")
        elif isinstance(m, _NORMS):
            into.role("norm", path)
        elif isinstance(m, _POOLS):
            into.role("pool", path)
            if not blocks and _closes_a_stage(modules.get(path.rpartition(".")[0])):
                into.role("block_out", path)
        elif is_activation(m):
            into.role("act", path)
    for path in blocks:
        into.role("block_out", path)
    return True


def _is_block(m: nn.Module, parent: nn.Module | None) -> bool:
    if children(m, "squeeze", "expand1x1", "expand3x3"):  # SqueezeNet's fire module
        return True
    if children(m, "branch1", "branch2"):  # GoogLeNet's inception module
        return True
    residual = isinstance(child(m, "conv1"), nn.modules.conv._ConvNd) and isinstance(child(m, "conv2"), nn.modules.conv._ConvNd)
    # A whole small network may call its layers conv1 and conv2 too; blocks stand in a row, or bring their shortcut.
    return residual and (parent is None or isinstance(parent, nn.Sequential) or hasattr(m, "downsample") or hasattr(m, "shortcut"))


def _closes_a_stage(parent: nn.Module | None) -> bool:
    """Whether a pooling layer inside ``parent`` ends a stage of convolutions, as in VGG networks."""
    return isinstance(parent, nn.Sequential) and any(isinstance(m, nn.modules.conv._ConvNd) for m in parent.children())
