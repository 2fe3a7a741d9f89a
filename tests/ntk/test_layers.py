"""Every layer of torch that holds parameters: by rule or by autograd, and never wrong."""

import pytest
import torch

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.errors import UnsupportedLayerError
from mechfeat.ntk import NTKOperator, empirical_ntk
from tests.ntk.layers import LAYERS
from tests.ntk.test_exact import OUTPUTS, assert_exact, reduced

every_layer = pytest.mark.parametrize("name", LAYERS)


@every_layer
def test_matches_the_definition(name):
    net, x1, x2 = LAYERS[name].build()
    for other in (None, x2):
        literal = oracle.empirical_ntk(net, x1, other)
        want = sum(literal.values())
        for outputs in OUTPUTS:
            for prove in ("always", "never"):  # with the proof what is wrong goes to the exact path; without it nothing may be wrong
                result = empirical_ntk(net, x1, other, outputs=outputs, prove=prove, layerwise=True)
                assert_exact(result.kernel, reduced(want, outputs))
                for parameter, part in result.layers.items():
                    gap = float((part - reduced(literal[parameter], outputs)).abs().max())
                    assert gap <= 1e-12 * float(want.abs().max()), parameter
                assert [c.parameter for c in result.coverage] == [n for n, p in net.named_parameters() if p.requires_grad]


@every_layer
def test_a_path_for_each_parameter_of_the_oracle(name):
    net, x, _ = LAYERS[name].build()
    literal = oracle.empirical_ntk(net, x)
    for c in empirical_ntk(net, x).coverage:
        assert (c.path == "unused") <= (not literal[c.parameter].any()), c
        assert not (c.detail.startswith("its rule failed")), c


@pytest.mark.parametrize("name", [n for n in LAYERS if n.startswith(("conv", "transposed convolution"))])
def test_convolutions_go_by_rule(name):
    net, x, _ = LAYERS[name].build()
    assert {c.path for c in empirical_ntk(net, x, strict=True).coverage} == {"rule"}


@every_layer
def test_operator(name):
    net, x, _ = LAYERS[name].build()
    if name.startswith("embedding bag"):  # torch 2.13 has neither of its derivatives
        with pytest.raises(UnsupportedLayerError):
            NTKOperator(net, x)
        return
    want = sum(oracle.empirical_ntk(net, x).values()).flatten(0, 1).flatten(1)
    v = torch.randn(len(want))
    assert_exact(NTKOperator(net, x, chunk_size=3) @ v, want @ v)
