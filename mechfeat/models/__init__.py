"""Plain modules to study: small enough to train in seconds, built only of torch."""

from mechfeat.models import text as text
from mechfeat.models.cnn import DigitsCNN
from mechfeat.models.mlp import mlp
from mechfeat.models.resnet import CifarResNet
from mechfeat.models.toy import ToyAutoencoder
from mechfeat.models.training import train

__all__ = ["CifarResNet", "DigitsCNN", "ToyAutoencoder", "mlp", "train"]
