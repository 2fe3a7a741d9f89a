r"""A hidden layer on sums of orthogonal embeddings: the formula behind the bag, the CNN and the mixing block."""

from jaxtyping import Float
from torch import Tensor

from mechfeat.models.text.init import InitSpec
from mechfeat.ntk.dual import Activation


def hidden_layer(
    activation: Activation,
    init: InitSpec,
    q1: Float[Tensor, "..."],
    q2: Float[Tensor, "..."],
    overlap: Float[Tensor, "..."],
) -> Float[Tensor, "..."]:
    r"""Tangent kernel of :math:`m^{-1/2} v \cdot φ(d^{-1/2} W e)` for two sums e, e' of embeddings.

    .. math:: k(τ^2 q, τ^2 q', τ^2 o) + s_v^2 (s_e^2 + s_w^2)\, o\, k_1(τ^2 q, τ^2 q', τ^2 o)

    The terms are those of read-out, W and embeddings; parts that do not train drop out.

    Args:
        activation: φ.
        init: Standard deviations, and what does not train.
        q1: Squared norm of e in units of one embedding.
        q2: That of e'.
        overlap: Their inner product o in the same unit.

    Returns:
        The kernel, float64.

    Source:
        Jacot et al. 2018, *Neural Tangent Kernel*, theorem 1, with orthogonal inputs that train.
    """
    at = (init.tau_sq * q1, init.tau_sq * q2, init.tau_sq * overlap)
    below = init.trains("hidden") * init.embedding**2 + init.trains("embedding") * init.hidden**2
    return init.trains("readout") * activation.k(*at) + init.readout**2 * below * overlap * activation.k1(*at)
