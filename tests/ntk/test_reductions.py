"""Parts sum to the whole, and every kind of outputs is a reduction of all pairs of them, computed at its own cost."""

import functools

import pytest
import torch

from mechfeat.ntk import NTKOperator, empirical_ntk
from tests.ntk.test_exact import assert_exact
from tests.ntk.zoo import ZOO

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def reductions(o, dtype):
    """What can be asked for, and what it is of the full kernel."""
    mix = torch.linspace(-1, 1, 2 * o, dtype=dtype).view(o, 2) + 0.25
    return {
        "full": ("full", lambda K: K),
        "trace": ("trace", lambda K: K.diagonal(dim1=1, dim2=3).sum(-1)),
        "diagonal": ("diagonal", lambda K: K.diagonal(dim1=1, dim2=3)),
        "pseudo": ("pseudo", lambda K: K.sum((1, 3))),
        "class": (o - 1, lambda K: K[:, -1, :, -1]),
        "callable": (functools.partial(torch.matmul, other=mix), lambda K: torch.einsum("nomp,oa,pb->namb", K, mix, mix)),
    }


# A float32 kernel of these sizes carries some 1e-7 of its largest entry; a sum over outputs adds as many of them as it has terms.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", ZOO)
def test_each_is_the_reduction_of_full(name, dtype, tolerance):
    net, x1, x2 = ZOO[name].build()
    net, x1, x2 = net.to(dtype), *(x.to(dtype) if x.is_floating_point() else x for x in (x1, x2))
    for other in (None, x2):
        full = empirical_ntk(net, x1, other, prove="never").kernel
        for outputs, reduce in reductions(full.shape[1], dtype).values():
            whole = empirical_ntk(net, x1, other, outputs=outputs, prove="never").kernel
            assert_exact(whole, reduce(full), tolerance)
            parts = empirical_ntk(net, x1, other, outputs=outputs, layerwise=True, prove="never")
            assert_exact(sum(parts.layers.values()), parts.kernel, tolerance)
            assert_exact(parts.kernel, whole, tolerance)


@pytest.mark.parametrize("outputs", ["full", "trace", "pseudo"])
def test_diagonal_of_an_operator_at_its_own_cost(outputs, monkeypatch):
    from mechfeat.ntk import operator

    net, x, _ = ZOO["mlp"].build()
    asked, right = [], operator.empirical_ntk
    monkeypatch.setattr(operator, "empirical_ntk", lambda *a, **k: asked.append(k["outputs"]) or right(*a, **k))
    found = NTKOperator(net, x, outputs=outputs, chunk_size=4).diagonal()
    assert asked == [{"full": "diagonal"}.get(outputs, outputs)] * 2
    full = empirical_ntk(net, x).kernel
    want = full.flatten(0, 1).flatten(1) if outputs == "full" else reductions(3, x.dtype)[outputs][1](full)
    assert_exact(found, want.diagonal())
