"""Blocks of samples change nothing but the memory."""

import pytest
import torch
from torch import nn

from mechfeat.models import mlp
from mechfeat.ntk.checks import check_model
from mechfeat.ntk.job import Job
from mechfeat.ntk.verify import proved
from tests.ntk.test_bottleneck import tied_table
from tests.ntk.test_exact import OUTPUTS
from tests.ntk.zoo import ZOO


def job(net, xs, outputs, block, layerwise=False, method="auto"):
    return Job(net, check_model(net), xs, outputs, method, layerwise, 0, block=block)


SOME = {
    "mlp", "convolution", "resnet", "transformer", "tied embedding", "module called twice", "embedding twice", "unused", "frozen", "lstm",
    "attention", "position parameter", "straight and transposed", "checkpoint", "output with axes", "one sample", "groups",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", [name if name in SOME else pytest.param(name, marks=pytest.mark.full) for name in ZOO])
def test_blocks_give_the_whole(name):
    net, x1, x2 = ZOO[name].build()
    for xs, outputs in (((x1,), "full"), ((x1,), "trace"), ((x1, x2), "full"), ((x1, x2), "diagonal")):
        whole = job(net, xs, outputs, None)
        want, _, _ = proved(whole, whole.run({}), False)
        for block in (1, 3) if name in ("resnet", "embedding twice", "unused") else (2,):
            small = job(net, xs, outputs, block)
            have, failed = small.run(dict(want.unfit)), {}
            if outputs != "trace":
                have, _, failed = proved(small, have, False)
            scale = want.kernel.abs().max()
            assert (have.kernel - want.kernel).abs().max() <= 1e-12 * scale
            assert not failed
            for part, other in zip(have.ys, want.ys):
                torch.testing.assert_close(part, other)
            for parameter, part in want.parts.items():
                assert (have.parts[parameter] - part).abs().max() <= 1e-12 * scale
            if len(xs) == 1:
                mirrored = have.kernel.permute(2, 3, 0, 1) if outputs == "full" else have.kernel.transpose(0, 1)
                assert torch.equal(have.kernel, mirrored)
                assert small.plan(dict(have.unfit)).rows == have.plan.rows


def test_layers_are_put_together():
    net, x1, x2 = ZOO["resnet"].build()
    for xs in ((x1,), (x1, x2)):
        for outputs in OUTPUTS:
            want, have = (job(net, xs, outputs, block, layerwise=True).run({}) for block in (None, 2))
            assert want.layers.keys() == have.layers.keys()
            for name, layer in want.layers.items():
                torch.testing.assert_close(have.layers[name], layer)


@pytest.mark.parametrize("make", [lambda: mlp([5, 7, 6, 60], nn.Tanh), tied_table, lambda: mlp([5, 40, 90], nn.Tanh)])
def test_wide_heads(make):
    net = make()
    tokens = "e.weight" in dict(net.named_parameters())
    x1, x2 = (torch.randint(0, 31, (n, 5)) if tokens else torch.randn(n, 5) for n in (7, 5))
    for xs in ((x1,), (x1, x2)):
        want, _, _ = proved(whole := job(net, xs, "trace", None), whole.run({}), False)
        assert want.head is not None
        for block in (2, 3):
            small = job(net, xs, "trace", block)
            have, _, failed = proved(small, small.run({}), True)
            assert not failed
            torch.testing.assert_close(have.kernel, want.kernel, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(have.forms, want.forms, rtol=1e-9, atol=1e-9)
            assert small.plan({}).rows == have.plan.rows


def test_the_names_are_those_of_models():
    assert set(ZOO) > SOME
