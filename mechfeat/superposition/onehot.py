r"""The ledger of one-hot inputs: a loss that counts features.

With inputs :math:`e_1, \ldots, e_f` the model :math:`\sigma(W U^\top + b)` has :math:`f \times f` outputs, and the loss of predicting
nothing is :math:`1/f`. What training took off it is a number of features, exactly.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import ShapeError


def one_hot_loss(
    W: Float[Tensor, "*instance feature hidden"],
    *,
    U: Float[Tensor, "*instance feature hidden"] | None = None,
    b: Float[Tensor, "*#instance feature"] | None = None,
    shift: int | float = 0.0,
) -> Float[Tensor, "*instance"]:
    r"""Mean squared error of a ReLU autoencoder over all one-hot inputs.

    .. math:: L = \tfrac{1}{f^2} \big\| \operatorname{ReLU}(W U^\top + b + s) - 1 \big\|_F^2

    Toy models only.

    Args:
        W: Embedding, one row per feature.
        U: Unembedding, one row per feature; ``W`` (tied) if None.
        b: Bias of each output; none if None.
        shift: Constant :math:`s` added before the ReLU.

    Returns:
        Values ≥ 0, mean over inputs and outputs; 1/f for zero weights.

    Example:
        >>> one_hot_loss(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]]))
        tensor(0.0400)
    """
    pre = W @ (W if U is None else U).mT + shift
    out = torch.relu(pre if b is None else pre + b[..., None, :])
    return (out - torch.eye(W.shape[-2], dtype=W.dtype, device=W.device)).square().mean((-2, -1))


def k_eff(mse: Float[Tensor, "*instance"], n_features: int) -> Float[Tensor, "*instance"]:
    r"""Effective number of features from the loss on one-hot inputs.

    .. math:: k_{\text{eff}} = f - f^2 L

    For a bias-free tied ReLU model at rest under rescaling it equals :math:`\|W\|_F^2`; with an output bias each feature that
    is reconstructed perfectly adds exactly 1.

    Toy models only: it needs one-hot inputs and the mean squared error over all :math:`f \times f` outputs.

    Args:
        mse: Loss, mean over inputs and outputs.
        n_features: Number :math:`f` of features.

    Returns:
        Features, in [0, f] for a model that is at least as good as predicting zero, and below 0 for one that is not.

    Raises:
        ShapeError: There is no feature.

    Source:
        Derived in the theory page on superposition.

    Example:
        >>> k_eff(torch.tensor(0.04), 5)
        tensor(4.)
    """
    if n_features < 1:
        raise ShapeError(f"n_features={n_features}. Give the number of features, at least 1.")
    return n_features - n_features**2 * mse
