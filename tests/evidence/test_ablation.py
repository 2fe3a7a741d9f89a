import pytest
import torch
from torch import nn

from mechfeat.errors import OptionError, ShapeError
from mechfeat.evidence import ablation_effect
from mechfeat.features import Feature


def linear_net(weights):
    net = nn.Sequential(nn.Identity(), nn.Linear(len(weights), 1, bias=False))
    net[1].weight.data = torch.tensor([weights])
    return net


def data(n=60, channels=4, seed=0):
    return torch.randn(n, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1.0


def first(y):
    return y[:, 0]


def test_effect_on_a_linear_model_is_known_exactly():
    """Holding one coordinate at its mean lowers w·x by w_i (x_i - mean x_i)."""
    x = data()
    found = ablation_effect(linear_net([2.0, 0.5, 0.0, 0.0]), Feature("0", torch.tensor([3.0, 0.0, 0.0, 0.0])), x, first, n_null=10)
    torch.testing.assert_close(found.effects, 2.0 * (x[:, 0] - x[:, 0].mean()))
    assert found.value == pytest.approx(0.0, abs=1e-12)


def test_a_used_direction_beats_random_ones_and_an_unused_one_does_not():
    x = data()
    on = x[:, 0] > 1.5
    net = linear_net([2.0, 0.0, 0.0, 0.0])
    used = ablation_effect(net, Feature("0", torch.eye(4)[0]), x, first, on=on)
    unused = ablation_effect(net, Feature("0", torch.eye(4)[3]), x, first, on=on)
    assert used.established
    assert used.n == int(on.sum())
    assert not unused.established
    assert unused.value == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("null", ["covariance", "isotropic"])
def test_model_and_length_of_the_direction_do_not_matter(null):
    x, net = data(), linear_net([1.0, 2.0, 3.0, 4.0])
    before = net(x)
    a, b = (ablation_effect(net, Feature("0", s * torch.tensor([1.0, 2.0, 0.0, 0.0])), x, first, null=null, n_null=5) for s in (1.0, -7.0))
    torch.testing.assert_close(a.effects, b.effects)
    torch.testing.assert_close(a.null, b.null)
    assert torch.equal(before, net(x))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_covariance_null_follows_the_activations():
    """With activations on one line, every random direction is that line, so nothing can beat it."""
    line = torch.tensor([1.0, 1.0, 0.0, 0.0]) / 2**0.5
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * line
    found = ablation_effect(linear_net([1.0, 0.0, 0.0, 0.0]), Feature("0", line), x, first, on=x[:, 0] > 0, n_null=20)
    torch.testing.assert_close(found.null, torch.full((20,), found.value))
    assert not found.established


def test_errors(unchecked):
    x, net, feature = data(), linear_net([1.0, 0.0, 0.0, 0.0]), Feature("0", torch.eye(4)[0])
    with pytest.raises(ShapeError) as error:
        ablation_effect(net, feature, x, lambda y: y)
    assert str(error.value) == "The metric gave shape (60, 1) for 60 inputs. It must give one number an input, such as logits[:, 3]."
    with pytest.raises(ShapeError) as error:
        ablation_effect(net, feature, x, first, on=torch.zeros(60, dtype=torch.bool))
    assert str(error.value) == "on marks 0 of (60,) inputs, and there are 60. It needs one mark an input, and at least one set."
    with pytest.raises(OptionError) as error:
        ablation_effect(net, feature, x, first, null="gaussian")
    assert str(error.value) == "null='gaussian' is not known. It can be 'covariance', 'isotropic'."
