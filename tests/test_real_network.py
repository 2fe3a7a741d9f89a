"""The whole slice on a network that others trained, with images it was not trained on."""

import pytest
import torch

import mechfeat as mf
from mechfeat.bench.oracles import ntk as oracle
from tests import real

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def net():
    return real.resnet20()


@pytest.fixture(scope="module")
def images():
    return real.cifar_test_images()


def test_recording_everything_leaves_the_logits_bit_equal(net, images):
    x = images[0][::100]
    with torch.no_grad():
        plain = net(x)
        for _ in range(2):  # copies on the first run, knows what is overwritten on the second
            recorded, cache = mf.HookedModel(net).run_with_cache(x)
            assert torch.equal(plain, recorded)
    assert len(cache) == 3 + 9 * 7 + 3 + 2  # the stem; 7 in each block, its ReLU twice; the stages; the read-out and the whole


def test_direction_of_a_class_is_found_and_used(net, images):
    x, y = images[0][::4], images[1][::4]
    model = mf.HookedModel(net)
    with torch.no_grad():
        samples = model.record(x, "layer3.2").samples("layer3.2", positions="mean")
    ship = mf.probes.difference_of_means(samples, y == real.CLASSES.index("ship"), name="ship")
    assert ship.established
    assert ship.value > 0.9

    k = real.CLASSES.index("ship")

    def log_odds(logits):
        return logits[:, k] - logits[:, [i for i in range(10) if i != k]].logsumexp(1)

    removed = mf.evidence.ablation_effect(model, ship.feature, x, log_odds, on=y == k, n_null=20)
    assert removed.value > float(removed.null.max())


def test_kernel_is_exact_and_by_rule_alone(net, images):
    x = images[0][::700].double()
    twin = real.resnet20().double()
    result = mf.ntk.empirical_ntk(twin, x, strict=True, prove="always")
    want = sum(oracle.empirical_ntk(twin, x).values())
    assert float((result.kernel - want).abs().max() / want.abs().max()) <= 1e-12
    assert {c.path for c in result.coverage} == {"rule"}
