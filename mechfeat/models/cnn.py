"""A small convolutional network for 8 × 8 digits."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Two convolutions, a pooling, a hidden layer and a read-out. Every step has a module, hence a hook point.

    Args:
        channels: Channels of the two convolutions.
        n_hidden: Neurons of the hidden layer.
        n_classes: Outputs.
        generator: Source of the initial weights; the default one of torch if None.

    Example:
        >>> DigitsCNN()(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, channels: tuple[int, int] = (16, 32), n_hidden: int = 32, n_classes: int = 10, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels[0], 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels[0], channels[1], 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(channels[1] * 16, n_hidden)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(n_hidden, n_classes)
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2):
            fan_in = layer.weight[0].numel()
            with torch.no_grad():
                layer.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)  # He et al. 2015
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n class"]:
        """Logits.

        Args:
            x: Images.

        Returns:
            One row of logits an image.
        """
        x = self.relu1(self.conv1(x))
        x = self.pool(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(x.flatten(1))))
