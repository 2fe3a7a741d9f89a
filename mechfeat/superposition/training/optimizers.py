"""Optimisers that change parameters in place, without a graph: as those of torch, on an instance axis."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mechfeat.errors import OptionError
from mechfeat.features import storable

NAMES = ("sgd", "adam", "adamw")


@storable
@dataclass(frozen=True)
class Optimizer:
    r"""SGD, Adam or AdamW, as in ``torch.optim``.

    Attributes:
        name: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        betas: Decay of the two moments, for Adam.
        eps: What is added to the root of the second moment, for Adam.
        weight_decay: For AdamW, and for SGD: parameters are multiplied by 1 − lr · ``weight_decay`` at each step. It may be negative.

    Raises:
        OptionError: The name is not known, or Adam was given a weight decay.

    Source:
        Kingma and Ba 2015, *Adam*; Loshchilov and Hutter 2019, *Decoupled Weight Decay Regularization*.
    """

    name: Literal["sgd", "adam", "adamw"]
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise OptionError("optimizer", self.name, NAMES)
        if self.name == "adam" and self.weight_decay:
            raise OptionError("weight_decay", self.weight_decay, ["0 for 'adam'; 'adamw' decays weights"])

    @classmethod
    def of(cls, optimizer: "str | Optimizer") -> "Optimizer":
        """An optimiser by name.

        Args:
            optimizer: A name, with torch's defaults (a weight decay of 0.01 for AdamW), or an optimiser.

        Returns:
            The optimiser.

        Raises:
            OptionError: The name is not known.
        """
        if isinstance(optimizer, Optimizer):
            return optimizer
        if optimizer not in NAMES:
            raise OptionError("optimizer", optimizer, NAMES)
        return cls(optimizer, weight_decay=0.01 if optimizer == "adamw" else 0.0)  # type: ignore[arg-type]

    def state(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """What has to be remembered between steps.

        Args:
            parameters: Parameters by name.

        Returns:
            Zeros, by name; nothing for SGD.
        """
        if self.name == "sgd":
            return {}
        return {f"{name}.{moment}": torch.zeros_like(p) for name, p in parameters.items() for moment in ("first", "second")}

    def step_(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor], state: dict[str, Tensor], step: int, lr: float) -> None:
        """Change parameters and state in place.

        Args:
            parameters: Parameters by name.
            gradients: Their gradients; overwritten.
            state: What :meth:`state` made.
            step: Number of the step, from 0.
            lr: Learning rate.
        """
        decay = 1 - lr * self.weight_decay
        first_beta, second_beta = self.betas
        for name, p in parameters.items():
            g = gradients[name]
            if decay != 1:
                p.mul_(decay)
            if self.name == "sgd":
                p.add_(g, alpha=-lr)
                continue
            first, second = state[f"{name}.first"], state[f"{name}.second"]
            first.lerp_(g, 1 - first_beta)
            second.mul_(second_beta).addcmul_(g, g, value=1 - second_beta)
            torch.sqrt(second, out=g).mul_((1 - second_beta ** (step + 1)) ** -0.5).add_(self.eps)
            p.addcdiv_(first, g, value=-lr / (1 - first_beta ** (step + 1)))
