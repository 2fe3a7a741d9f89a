"""From a finite text model to its kernel at infinite width."""

from typing import Any

from torch import nn

from mechfeat.errors import UnsupportedModelError
from mechfeat.hooks import HookedModel, unwrap
from mechfeat.models.text import (
    BagMLP,
    BigramMatrixVector,
    Centred,
    GatedLinearRNN,
    HadamardBigram,
    LinearRNN,
    MatrixVectorRNN,
    MixingBlock,
    SelfAttention,
    TextCNN,
)
from mechfeat.ntk.analytic.attention import AttentionKernel
from mechfeat.ntk.analytic.bag import BagKernel
from mechfeat.ntk.analytic.base import AnalyticKernel
from mechfeat.ntk.analytic.bigram import BigramKernel, HadamardKernel
from mechfeat.ntk.analytic.conv import ConvKernel
from mechfeat.ntk.analytic.mixing import MixingKernel
from mechfeat.ntk.analytic.recurrent import GatedLinearRNNKernel, LinearRNNKernel, MatrixVectorRNNKernel

KERNELS: dict[type[nn.Module], Any] = {
    BagMLP: BagKernel,
    TextCNN: ConvKernel,
    SelfAttention: AttentionKernel,
    MixingBlock: MixingKernel,
    BigramMatrixVector: BigramKernel,
    HadamardBigram: HadamardKernel,
    MatrixVectorRNN: MatrixVectorRNNKernel,
    LinearRNN: LinearRNNKernel,
    GatedLinearRNN: GatedLinearRNNKernel,
}


def kernel_of(module: nn.Module | HookedModel) -> AnalyticKernel:
    """The infinite-width kernel of a text model, from its own options, activation and initial standard deviations.

    Args:
        module: A model of ``mechfeat.models.text``, centred or not.

    Returns:
        The kernel, for one output; C outputs are independent and each has it.

    Raises:
        UnsupportedModelError: There is no deterministic kernel for this model, or its parameters train otherwise than its ``init`` says.

    Example:
        >>> kernel_of(BagMLP(5, 8, 16, activation="tanh")).mu
        0.0
    """
    module = unwrap(module)
    if isinstance(module, Centred):
        return kernel_of(module.model)
    if type(module) not in KERNELS:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no closed-form kernel here; {', '.join(m.__name__ for m in KERNELS)} have. Take"
            " mechfeat.ntk.empirical_ntk of the network itself."
        )
    return KERNELS[type(module)].of(module)
