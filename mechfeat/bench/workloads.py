"""Networks that are timed and nothing else: a VGG-like CNN, ResNet-18 for 32 × 32 images, and a GPT-2-like transformer."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def vgg_like(widths: tuple[int, ...] = (32, 64, 128), n_classes: int = 10) -> nn.Sequential:
    """Pairs of 3 × 3 convolutions with average pooling between, for 32 × 32 images.

    Args:
        widths: Channels of each pair.
        n_classes: Outputs.

    Returns:
        The network.
    """
    layers: list[nn.Module] = []
    for a, b in zip((3, *widths), widths):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * (32 >> len(widths)) ** 2, 256), nn.ReLU(), nn.Linear(256, n_classes))


class _Residual(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        plain = stride == 1 and n_in == n_out
        self.shortcut = nn.Identity() if plain else nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 without the first pooling, as used on 32 × 32 images; its running statistics are random.

    Args:
        n_classes: Outputs.

    Source:
        He et al. 2016, *Deep Residual Learning for Image Recognition*.
    """

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        stages = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        self.blocks = nn.Sequential(*[b for i, o, s in stages for b in (_Residual(i, o, s), _Residual(o, o, 1))])
        self.linear = nn.Linear(512, n_classes)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                assert m.running_mean is not None
                assert m.running_var is not None
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(m.weight, 0.5, 1.5)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n class"]:
        """Class scores."""
        return self.linear(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        t = x.shape[1]
        h = self.norm1(x)
        q, k, v = (w(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for w in (self.q, self.k, self.v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        pattern = scores.masked_fill(torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1), float("-inf")).softmax(-1)
        x = x + self.o((pattern @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """Pre-norm decoder with attention written out, read at the last token.

    Args:
        d: Width of the residual stream.
        n_blocks: Blocks.
        n_vocab: Token ids.
        n_ctx: Tokens of a text.
        n_outputs: Outputs of the head; all tokens by default.
        heads: Attention heads.
    """

    def __init__(
        self, d: int = 256, n_blocks: int = 3, n_vocab: int = 1000, n_ctx: int = 64, n_outputs: int | None = None, heads: int = 4
    ) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(n_vocab, d), nn.Embedding(n_ctx, d)
        self.blocks = nn.Sequential(*[_Block(d, heads) for _ in range(n_blocks)])
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, n_outputs or n_vocab, bias=False)

    def forward(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n o"]:
        """Scores at the last token."""
        # Positions with an axis of samples, which torch.func's baseline does not need and gradients by sample do.
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape))
        return self.head(self.norm(self.blocks(x))[:, -1])
