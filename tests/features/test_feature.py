import pytest
import torch

from mechfeat.errors import NonFiniteError, ShapeError
from mechfeat.features import Feature, FeatureSet, Samples


def table(values, hook="conv1"):
    return Samples(values, torch.arange(len(values)), hook, len(values))


@pytest.mark.parametrize("scale", [1.0, 1e-100, 1e100])
def test_unit_has_length_one(scale):
    torch.testing.assert_close(Feature("conv1", scale * torch.tensor([3.0, 4.0])).unit, torch.tensor([0.6, 0.8]))


def test_a_zero_direction_stays_zero():
    assert torch.equal(Feature("conv1", torch.zeros(3)).unit, torch.zeros(3))


def test_projection_does_not_depend_on_the_length_of_the_direction():
    s = table(torch.randn(5, 3))
    w = torch.randn(3)
    torch.testing.assert_close(Feature("conv1", 7 * w).project(s), Feature("conv1", w).project(s))
    torch.testing.assert_close(Feature("conv1", w).project(s), (s.values * w).sum(-1) / w.square().sum().sqrt())


def test_projection_follows_the_dtype_of_the_samples():
    feature = Feature("conv1", torch.tensor([1.0, 0.0]))
    assert feature.project(table(torch.ones(2, 2, dtype=torch.float32))).dtype == torch.float32


def test_a_neuron_reads_its_channel():
    values = torch.randn(4, 3)
    neuron = Feature.neuron("conv1", 2, 3)
    assert neuron.name == "conv1[2]"
    assert torch.equal(neuron.project(table(values)), values[:, 2])


@pytest.mark.parametrize("channel", [-1, 3])
def test_no_such_channel(channel):
    with pytest.raises(ShapeError) as error:
        Feature.neuron("conv1", channel, 3)
    assert str(error.value) == f"Channel {channel} does not exist at 'conv1', which has channels 0 to 2."


def test_samples_of_another_width():
    with pytest.raises(ShapeError) as error:
        Feature("conv1", torch.ones(3), "edge").project(table(torch.ones(2, 4), "conv2"))
    assert (
        str(error.value)
        == "Feature 'edge' has 3 channels ('conv1'), the samples of 'conv2' have 4. Take the samples at the feature's hook point."
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_are_finite(bad):
    with pytest.raises(NonFiniteError) as error:
        Feature("conv1", torch.tensor([1.0, bad]), "edge")
    assert str(error.value) == "The direction of feature 'edge' at 'conv1' holds NaN or infinity. A feature needs finite weights."


def test_a_set_is_a_sequence_of_features():
    features = FeatureSet("conv1", torch.eye(3), ("a", "b", "c"))
    assert [f.name for f in features] == ["a", "b", "c"]
    assert features[-1].name == "c"
    assert torch.equal(features[1].direction, torch.tensor([0.0, 1.0, 0.0]))
    with pytest.raises(IndexError, match=r"^Feature 3 of a set of 3 at 'conv1'\.$"):
        features[3]


def test_unnamed_features_are_named_by_position():
    assert [f.name for f in FeatureSet("conv1", torch.eye(2))] == ["conv1[0]", "conv1[1]"]
    assert FeatureSet("conv1", torch.eye(2))[-1].name == "conv1[1]"


def test_one_name_a_feature():
    with pytest.raises(ShapeError) as error:
        FeatureSet("conv1", torch.eye(3), ("a",))
    assert str(error.value) == "1 names for 3 features at 'conv1'. Give one name a feature, or none."
