"""Text models at finite width, in the NTK parameterisation that their infinite-width kernels share."""

from mechfeat.models.text.activations import FUNCTIONS, LeakyReLU, activation
from mechfeat.models.text.attention import MixingBlock, SelfAttention
from mechfeat.models.text.bag import BagMLP
from mechfeat.models.text.base import TextModel
from mechfeat.models.text.bigram import BigramMatrixVector, HadamardBigram
from mechfeat.models.text.centred import Centred
from mechfeat.models.text.conv import TextCNN
from mechfeat.models.text.ids import check_ids, pad
from mechfeat.models.text.init import InitSpec
from mechfeat.models.text.language import CausalTransformerLM
from mechfeat.models.text.recurrent import GatedLinearRNN, LinearRNN, MatrixVectorRNN

__all__ = [
    "FUNCTIONS",
    "BagMLP",
    "BigramMatrixVector",
    "CausalTransformerLM",
    "Centred",
    "GatedLinearRNN",
    "HadamardBigram",
    "InitSpec",
    "LeakyReLU",
    "LinearRNN",
    "MatrixVectorRNN",
    "MixingBlock",
    "SelfAttention",
    "TextCNN",
    "TextModel",
    "activation",
    "check_ids",
    "pad",
]
