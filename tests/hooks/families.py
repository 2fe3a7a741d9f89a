"""Small random networks of the families that adapters know."""

import torch
from torch import nn

from tests.peers import needs

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}


def gpt2():
    needs("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=13, n_positions=8, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))


def llama():
    needs("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            **SIZES, intermediate_size=24, num_key_value_heads=2, vocab_size=13, bos_token_id=0, eos_token_id=0, max_position_embeddings=8
        )
    )


def bert():
    needs("transformers")
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**SIZES, intermediate_size=24, vocab_size=13, max_position_embeddings=8))


def vit():
    needs("transformers")
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**SIZES, intermediate_size=24, image_size=8, patch_size=4, num_labels=3))


def encoder(norm_first=False):
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for p in net.parameters():  # all layers start equal, and biases at zero
        nn.init.normal_(p, std=0.3)
    return net


def built(make, dtype=torch.float64):
    """Seeded, in eval mode, with no parameter at a special value."""
    torch.manual_seed(0)
    net = make().to(dtype).eval()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net


def tokens():
    return torch.randint(1, 13, (2, 6))


class ResNet(nn.Module):
    """Residual network whose blocks bring a shortcut, as torchvision's do."""

    class Block(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.conv1, self.bn1, self.relu = nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)
            self.conv2, self.bn2 = nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b)
            self.downsample = None if a == b else nn.Conv2d(a, b, 1)

        def forward(self, x):
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return self.relu(y + (x if self.downsample is None else self.downsample(x)))

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(self.Block(4, 4), self.Block(4, 6))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.avgpool(x).flatten(1))


class Squeeze(nn.Module):
    """Two fire modules in a row, as in SqueezeNet."""

    class Fire(nn.Module):
        def __init__(self, n, s, e):
            super().__init__()
            self.squeeze, self.squeeze_activation = nn.Conv2d(n, s, 1), nn.ReLU(inplace=True)
            self.expand1x1, self.expand1x1_activation = nn.Conv2d(s, e, 1), nn.ReLU(inplace=True)
            self.expand3x3, self.expand3x3_activation = nn.Conv2d(s, e, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.squeeze_activation(self.squeeze(x))
            return torch.cat([self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1)

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), self.Fire(4, 2, 3), self.Fire(6, 2, 3))

    def forward(self, x):
        return self.features(x).mean((2, 3))


class VGG(nn.Module):
    """Stages of convolutions in one sequential module, each closed by pooling."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
