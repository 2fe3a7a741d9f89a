"""Text models at finite width, in the NTK parameterisation that their infinite-width kernels share."""

from mechfeat.models.text.activations import FUNCTIONS, LeakyReLU, activation
from mechfeat.models.text.bag import BagMLP
from mechfeat.models.text.base import TextModel
from mechfeat.models.text.ids import check_ids, pad
from mechfeat.models.text.init import InitSpec

__all__ = ["FUNCTIONS", "BagMLP", "InitSpec", "LeakyReLU", "TextModel", "activation", "check_ids", "pad"]
