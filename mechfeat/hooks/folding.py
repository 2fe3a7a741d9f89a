"""Batch norm in eval mode is an affine map of each channel, so a layer and the norm after it are one layer.

The folded weights are values: the model is left as it is.
"""

from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import ShapeError, UnsupportedLayerError


def fold_batch_norm(conv: nn.Module, bn: nn.Module) -> tuple[Float[Tensor, "out in *space"], Float[Tensor, " out"]]:
    r"""Kernel and bias of the one layer that does what ``bn(conv(x))`` does in eval mode.

    .. math:: K' = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} K, \qquad
        b' = \beta + \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} (b - \mu)

    where the factor scales output channels, :math:`\mu, \sigma^2` are the running statistics and :math:`\gamma, \beta` the parameters
    of the norm (1 and 0 where it has none). Padding needs no care: it comes before the layer, and the norm after.

    Args:
        conv: A convolution, grouped ones included, or a linear layer with inputs ``[sample channel]``.
        bn: The batch norm that reads its output.

    Returns:
        Kernel in the layout of ``conv.weight``, and bias; they carry gradients.

    Raises:
        UnsupportedLayerError: The norm is in train mode or keeps no running statistics, so that its map depends on the batch;
            or the layers are of other kinds.
        ShapeError: The norm has another number of channels than the layer gives.

    Example:
        >>> import torch
        >>> conv, bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4).eval()
        >>> kernel, bias = fold_batch_norm(conv, bn)
        >>> kernel.shape, bias.shape
        (torch.Size([4, 1, 3, 3]), torch.Size([4]))
    """
    if not isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
        raise UnsupportedLayerError(
            f"fold_batch_norm takes nn.Conv1d, nn.Conv2d, nn.Conv3d or nn.Linear, and was given {type(conv).__name__}."
        )
    if not isinstance(bn, nn.modules.batchnorm._BatchNorm):
        raise UnsupportedLayerError(f"fold_batch_norm takes a batch norm, and was given {type(bn).__name__}.")
    if bn.training:
        raise UnsupportedLayerError(
            "This batch norm is in train mode, where it uses the statistics of each batch and is no fixed map. Call `model.eval()` first."
        )
    if bn.running_mean is None or bn.running_var is None:
        raise UnsupportedLayerError(
            "This batch norm keeps no running statistics (track_running_stats=False): it uses those of each batch and is no fixed map."
        )
    kernel = conv.weight
    if bn.num_features != len(kernel):
        raise ShapeError(f"The layer gives {len(kernel)} channels, and the batch norm takes {bn.num_features}. They must be neighbours.")
    scale = (bn.running_var + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight
    shift = -bn.running_mean if conv.bias is None else conv.bias - bn.running_mean
    bias = scale * shift
    if bn.bias is not None:
        bias = bias + bn.bias
    return kernel * scale.view(-1, *[1] * (kernel.ndim - 1)), bias
