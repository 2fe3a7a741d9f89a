"""Features of a real layer: the directions that the next layer reads, and those that a layer writes."""

from torch import nn

from mechfeat.errors import HookNameError, ShapeError, UnsupportedLayerError
from mechfeat.features import FeatureSet
from mechfeat.hooks import HookedModel, hooked


def read_directions(model: nn.Module | HookedModel, layer: str, *, n_channels: int | None = None) -> FeatureSet:
    """Directions in the input of a layer, one for each unit and place that reads it.

    A convolution reads its input channels once at each entry of its kernel, a linear layer after flattening once at each
    position; each of these is a direction in channel space.

    Args:
        model: The model.
        layer: Path of a ``Conv2d`` (one group) or ``Linear``.
        n_channels: Channels of the activation that a linear layer reads, if it was flattened from channels and positions.

    Returns:
        A feature set at ``layer:in``, ``[unit·place channel]``, detached.

    Raises:
        HookNameError: There is no such module.
        UnsupportedLayerError: It is another kind of layer.
        ShapeError: The linear layer's inputs are no multiple of ``n_channels``.

    Example:
        >>> read_directions(nn.Sequential(nn.Conv2d(4, 2, 3)), "0").directions.shape
        torch.Size([18, 4])
    """
    hm = hooked(model)
    module = dict(hm.module.named_modules()).get(layer)
    if module is None:
        raise HookNameError(layer, hm.hook_names())
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        rows = module.weight.detach().permute(0, 2, 3, 1).flatten(0, 2)
    elif isinstance(module, nn.Linear):
        rows = module.weight.detach()
        if n_channels is not None and rows.shape[1] % n_channels:
            raise ShapeError(f"{layer!r} reads {rows.shape[1]} inputs, which is no multiple of n_channels={n_channels}.")
        if n_channels is not None:
            rows = rows.unflatten(1, (n_channels, -1)).transpose(1, 2).flatten(0, 1)
    else:
        raise UnsupportedLayerError(f"{layer!r} is a {type(module).__name__}; directions are read from Conv2d (one group) and Linear.")
    return FeatureSet(f"{layer}:in", rows)


def write_directions(model: nn.Module | HookedModel, layer: str) -> FeatureSet:
    """Directions in the output of a layer, one for each input unit and place that writes to it.

    Args:
        model: The model.
        layer: Path of a ``Conv2d`` (one group) or ``Linear``.

    Returns:
        A feature set at ``layer``, ``[unit·place channel]``, detached.

    Raises:
        HookNameError: There is no such module.
        UnsupportedLayerError: It is another kind of layer.

    Example:
        >>> write_directions(nn.Sequential(nn.Linear(5, 2)), "0").directions.shape
        torch.Size([5, 2])
    """
    hm = hooked(model)
    module = dict(hm.module.named_modules()).get(layer)
    if module is None:
        raise HookNameError(layer, hm.hook_names())
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        rows = module.weight.detach().permute(1, 2, 3, 0).flatten(0, 2)
    elif isinstance(module, nn.Linear):
        rows = module.weight.detach().T
    else:
        raise UnsupportedLayerError(f"{layer!r} is a {type(module).__name__}; directions are read from Conv2d (one group) and Linear.")
    return FeatureSet(layer, rows)
