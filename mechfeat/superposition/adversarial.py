r"""Adversarial vulnerability: how much a small step of the input, chosen from the weights, raises the loss."""

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import OptionError
from mechfeat.superposition.rows import check_rows


def adversarial_vulnerability(
    W: Float[Tensor, "*instance feature hidden"],
    b: Float[Tensor, "*instance feature"],
    x: Float[Tensor, "sample feature"],
    *,
    epsilon: int | float | None = None,
    importance: Float[Tensor, " feature"] | None = None,
) -> Float[Tensor, "*instance"]:
    r"""Rise of the loss under the worst analytic attack, for each squared length of the attack.

    .. math:: \max_i \frac{L(x + \epsilon\, g_i / \|g_i\|) - L(x)}{\epsilon^2}, \qquad g_i = (W W^\top)_i, \quad
              L(x') = \mathbb E \textstyle\sum_j I_j \big(x_j - \operatorname{ReLU}(W W^\top x' + b)_j\big)^2

    Attack i is the direction in which output i rises fastest while it is active, the same for all samples.

    Real networks: no, it is analytic for this tied model; there, attack with gradients. It rises with features per
    dimension, closely up to about five of them, and in an autoencoder nearly by construction: a property of this model.

    Args:
        W: Feature directions, one row per feature.
        b: Bias of each output.
        x: Inputs.
        epsilon: Length of the attack; by default a tenth of the mean length of the inputs.
        importance: Weight of each feature in the loss, 1 by default.

    Returns:
        Values ≥ 0, dimensionless: making no attack is among the choices. A zero row makes none.

    Raises:
        OptionError: ``epsilon`` is not above 0, or by default would be 0 because all inputs are.

    Cost:
        O(samples · n² · m) time an instance, O(samples · n) bytes.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*, section "Superposition and Adversarial Vulnerability".

    Example:
        >>> one = torch.zeros(1, 2)
        >>> adversarial_vulnerability(torch.eye(2), torch.zeros(2), one, epsilon=0.5)
        tensor(1.)
    """
    check_rows(W)
    length = float(x.norm(dim=-1).mean()) * 0.1 if epsilon is None else float(epsilon)
    if not length > 0:
        raise OptionError("epsilon", length, ("a positive length",))
    gram = W @ W.mT
    weight = torch.ones_like(gram[..., 0]) if importance is None else importance
    pre = x @ gram + b[..., None, :]  # [*instance sample feature]

    def loss(pre: Tensor) -> Tensor:
        return ((x - torch.relu(pre)).square() * weight[..., None, :]).sum(-1).mean(-1)

    clean = loss(pre)
    worst = torch.zeros_like(clean)
    for i in range(W.shape[-2]):
        g = gram[..., i, :]
        norm = g.norm(dim=-1, keepdim=True)
        step = length * g / torch.where(norm > 0, norm, 1.0)
        worst = torch.maximum(worst, loss(pre + (step[..., None, :] @ gram)) - clean)
    return worst / length**2
