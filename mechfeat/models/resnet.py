"""Residual networks for 32 × 32 images, as in the CIFAR-10 experiments of He et al."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import ShapeError


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.stride, self.grow = stride, n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        # Option A of the paper: a shortcut without parameters, subsampled and padded with zero channels.
        skip = x[:, :, :: self.stride, :: self.stride]
        y += F.pad(skip, (0, 0, 0, 0, self.grow // 2, self.grow - self.grow // 2))
        return self.relu(y)


class CifarResNet(nn.Module):
    """ResNet-20, 32, 44, ... with parameter-free shortcuts. Its ReLU is reused and works in place, as in most code in use.

    Args:
        depth: ``6 b + 2`` for b blocks a stage.
        n_classes: Outputs.
        width: Channels of the first stage; 16 in the paper.

    Raises:
        ShapeError: The depth is not of that form.

    Source:
        He et al. 2016, *Deep Residual Learning for Image Recognition*, section 4.2.

    Example:
        >>> import torch
        >>> CifarResNet(8, width=4).eval()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, depth: int = 20, n_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ShapeError(f"A CIFAR ResNet has 6 b + 2 layers: 8, 14, 20, 26, 32, ...; depth={depth} is not among them.")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages, n_in = [], width
        for k in range(3):
            n_out = width * 2**k
            stages.append(nn.Sequential(*(_Block(n_in if i == 0 else n_out, n_out, 2 if i == 0 and k else 1) for i in range(blocks))))
            n_in = n_out
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(n_in, n_classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n class"]:
        """Logits.

        Args:
            x: Images.

        Returns:
            One row of logits an image.
        """
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))
