"""Plain modules to study: small enough to train in seconds, built only of torch."""

from mechfeat.models.bank import ToyBank
from mechfeat.models.cnn import DigitsCNN
from mechfeat.models.mlp import mlp
from mechfeat.models.resnet import CifarResNet
from mechfeat.models.toy import ToyAutoencoder
from mechfeat.models.toy_spec import ToySpec
from mechfeat.models.training import train
from mechfeat.models.universal_and import universal_and_bank

__all__ = ["CifarResNet", "DigitsCNN", "ToyAutoencoder", "ToyBank", "ToySpec", "mlp", "train", "universal_and_bank"]
