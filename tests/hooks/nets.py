"""Models, and what is known about them without mechfeat: captures by hand, hook tables, outputs as a list of tensors."""

import copy
import os
from dataclasses import dataclass

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

import mechfeat as mf
from mechfeat.models import CifarResNet, mlp
from tests.peers import needs


class CNN(nn.Module):
    """One ReLU for both convolutions, in place or not, and a flag module after the first convolution."""

    def __init__(self, inplace=True):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)
        self.fc = nn.Linear(4 * 25, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.relu(self.conv2(self.relu(self.conv1(x)))).flatten(1))


class Counter(nn.Module):
    """Counts its calls; raises what it is told to."""

    def __init__(self):
        super().__init__()
        self.calls, self.error = 0, None

    def forward(self, x):
        self.calls += 1
        if self.error is not None:
            raise self.error
        return x * 1


class Chain(nn.Module):
    """a, relu (in place), flag, b, relu again, c; `skip` is never called."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.relu, self.flag, self.skip = nn.ReLU(inplace=True), Counter(), nn.Linear(3, 3)

    def forward(self, x):
        return self.c(self.relu(self.b(self.flag(self.relu(self.a(x))))))


@dataclass
class Out:
    logits: torch.Tensor
    hidden: tuple
    note: str = "text"


class Tuples(nn.Module):
    """Modules that return a tuple of two, a tuple of one tensor, a dictionary; a dataclass at the root."""

    class Pair(nn.Module):
        def forward(self, x, scale=None, *, mask=None):
            return x + 1, x * 2

    class Single(nn.Module):
        def forward(self, x):
            return x * 3, None

    class Mapped(nn.Module):
        def forward(self, x):
            return {"h": x - 1, "n": 5}

    def __init__(self):
        super().__init__()
        self.pair, self.single, self.mapped = self.Pair(), self.Single(), self.Mapped()

    def forward(self, x):
        a, b = self.pair(x, 2.0, mask=x > 0)
        h = self.mapped(self.single(a + b)[0])["h"]
        return Out(h, (a, b))


class Points(nn.Module):
    """Two instances of a block that names a value, and a value of the root."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(torch.eye(3))

        def forward(self, x):
            return mf.point(x @ self.W, "h", self) + x

    def __init__(self):
        super().__init__()
        self.one, self.two = self.Block(), self.Block()

    def forward(self, x):
        return mf.point(self.two(mf.point(self.one(x), "mid")), "end", self)


def encoder(batch_first=True, nested=False):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)


def gpt2():
    needs("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def resnet(train=False):
    net = CifarResNet(8, width=4)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.0  # batch statistics in train mode, with running ones that stay
            nn.init.normal_(m.weight)
    return net.train(train)


MODELS = {
    "mlp": (lambda: mlp([5, 7, 7, 3]), lambda: torch.randn(4, 5)),
    "cnn": (CNN, lambda: torch.randn(2, 1, 5, 5)),
    "chain": (Chain, lambda: torch.randn(4, 3)),
    "tuples": (Tuples, lambda: torch.randn(4, 3)),
    "points": (Points, lambda: torch.randn(4, 3)),
    "resnet eval": (resnet, lambda: torch.randn(2, 3, 8, 8)),
    "resnet train": (lambda: resnet(True), lambda: torch.randn(2, 3, 8, 8)),
    "encoder": (lambda: encoder().eval(), lambda: torch.randn(2, 4, 16)),
    "encoder train": (encoder, lambda: torch.randn(2, 4, 16)),
    "encoder sequence first": (lambda: encoder(False).eval(), lambda: torch.randn(4, 2, 16)),
    "gpt2": (gpt2, lambda: torch.randint(0, 13, (2, 6))),
}


def build(name, dtype=torch.float64):
    """A seeded model and an input."""
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    net = make().to(dtype)
    x = inputs()
    return net, x.to(dtype) if x.is_floating_point() else x


def tensors(value):
    """The tensors inside a value, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Out):
        return [value.logits, *value.hidden]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors(v)]
    if isinstance(value, tuple | list):
        return [t for v in value for t in tensors(v)]
    return []


def assert_same(found, expected):
    """Bit for bit the same tensors."""
    found, expected = tensors(found), tensors(expected)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def captured_by_hand(net, x, **kwargs):
    """Copies of the tensors in every module's arguments and output, call by call, by plain hooks: {(path, side): [[tensor, ...], ...]}."""
    kept, handles = {}, []
    for path, module in net.named_modules():

        def before(m, args, kw, path=path):
            kept.setdefault((path, "in"), []).append([t.detach().clone() for t in tensors([*args, *kw.values()])])

        def after(m, args, out, path=path):
            kept.setdefault((path, "out"), []).append([t.detach().clone() for t in tensors(out)])

        handles += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    net(x, **kwargs)
    for h in handles:
        h.remove()
    return kept


def hook_tables(net):
    """Ids of all hooks on all modules, in order."""
    tables = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_always_called",
    )
    return [(path, t, list(getattr(m, t))) for path, m in net.named_modules() for t in tables]


def hook_count(net):
    return sum(len(ids) for _, _, ids in hook_tables(net))


def twin(net):
    return copy.deepcopy(net)
