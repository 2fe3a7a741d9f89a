"""Superposition of real layers: planted structure is found, nothing is found where there is nothing, real weights run."""

import pytest
import torch
from torch import nn

from mechfeat.errors import NonFiniteError, ShapeError
from mechfeat.features import FeatureSet, Samples, load
from mechfeat.hooks import HookedModel
from mechfeat.nulls import random_directions
from mechfeat.superposition import (
    concept_responses,
    polysemanticity,
    polytope,
    read_directions,
    superposition_report,
    unit_polysemanticity,
    unit_separability,
    write_directions,
)
from tests.real import cifar_test_images, resnet20

DIRECTIONS = {
    "mean_dimensionality", "mean_interference", "mean_squared_overlap", "frame_potential", "relu_energy", "effective_rank",
    "participation_ratio", "features_per_dimension",
}  # fmt: skip


def planted(n=120, concepts=4, noise=0.2):
    """One unit for each of three concepts, one for two of them, one for none."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % concepts
    A = noise * torch.randn(n, 5, generator=g)
    for unit, on in enumerate(([0], [1], [2], [0, 3])):
        A[:, unit] += torch.isin(labels, torch.tensor(on))
    return Samples(A, torch.arange(n), "units", n), labels


def test_responses_are_those_of_group_means():
    samples, labels = planted()
    found = concept_responses(samples.values, labels)
    means = torch.stack([samples.values[labels == c].mean(0) for c in range(4)])
    torch.testing.assert_close(found, means - means.amin(0))


def test_units_with_one_two_and_no_concept():
    samples, labels = planted()
    found = unit_polysemanticity(samples, labels)
    assert (found.per_unit[:3] < 0.05).all()
    assert found.per_unit[3].item() == pytest.approx(0.5, abs=0.1)
    assert (found.unit_p_values[:3] < 0.05).all()
    assert found.unit_p_values[4] > 0.05
    assert found.value == pytest.approx(found.per_unit.mean().item())
    assert found.established
    assert found.value < found.null.median()
    torch.testing.assert_close(found.per_unit, polysemanticity(concept_responses(samples.values, labels)))
    separable = unit_separability(samples, labels)
    assert separable.established
    assert (separable.unit_p_values[:4] < 0.05).all()
    assert separable.unit_p_values[4] > 0.05


@pytest.mark.parametrize("measure", [unit_polysemanticity, unit_separability])
def test_noise_is_rarely_established(measure):
    # At p ≤ 0.05, 40 layers of noise give 2 on average; 8 or more have probability 0.1 %.
    established = 0
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        samples = Samples(torch.randn(60, 3, generator=g), torch.arange(60), "noise", 60)
        established += measure(samples, torch.arange(60) % 3, n_null=59, n_boot=20, seed=seed).established
    assert established < 8


def test_positions_of_an_input_are_one_sample():
    samples, labels = planted()
    doubled = Samples(samples.values.repeat_interleave(2, 0), samples.inputs.repeat_interleave(2), "units", samples.n_inputs)
    torch.testing.assert_close(unit_polysemanticity(doubled, labels).null, unit_polysemanticity(samples, labels).null)


def test_directions_read_and_written():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    written = write_directions(net, "0")
    assert written.directions.shape == (27, 4)
    torch.testing.assert_close(written.directions[5], net[0].weight.detach()[:, 0, 1, 2])
    assert torch.equal(write_directions(net, "3").directions, net[3].weight.detach().T)
    x = torch.randn(40, 3, 4, 4)
    report = superposition_report(net, "0", x, n_null=9, n_boot=9)
    assert torch.equal(report.features.directions, written.directions)
    assert set(report.findings) == DIRECTIONS | {"active_dimensions", "active_units", "superposition_ratio"}
    read = superposition_report(net, "3:in", x, n_null=9, n_boot=9)
    assert torch.equal(read.features.directions, read_directions(net, "3").directions)
    assert read["active_units"].n_units == 16


def test_a_module_without_weights_is_measured_by_its_activations():
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    report = superposition_report(net, "1", torch.randn(30, 6), labels=torch.arange(30) % 3, n_null=9, n_boot=9)
    assert report.features is None
    assert set(report.findings) == {"active_dimensions", "active_units", "polysemanticity", "separability"}
    assert set(report.skipped) == DIRECTIONS | {"superposition_ratio"}
    assert report.skipped["effective_rank"] == (
        "no directions: '1' is a ReLU; directions are read from Conv2d (one group) and Linear. Give features=."
    )
    assert "skipped: no directions" in report.summary()


def test_a_dictionary_is_known_for_what_it_is():
    # Activations are sparse sums of nine evenly spread directions in two dimensions.
    W = polytope("octagon")
    g = torch.Generator().manual_seed(0)
    code = (torch.rand(400, 8, generator=g) < 0.1) * torch.rand(400, 8, generator=g)
    net = nn.Identity()
    report = superposition_report(HookedModel(nn.Sequential(net)), "0", code @ W, features=FeatureSet("0", W), n_null=99)
    assert report["mean_dimensionality"].value == pytest.approx(1 / 4)
    assert report["mean_dimensionality"].established
    assert report["superposition_ratio"].n_units == 8
    assert 1 < report["superposition_ratio"].value <= 4
    same = superposition_report(nn.Sequential(net), "0", code @ W, features=W, n_null=99)
    assert same["superposition_ratio"].value == report["superposition_ratio"].value


def test_features_that_are_not_there_do_not_count_by_chance_either():
    A, W = torch.randn(60, 8), torch.randn(5, 8)
    one, other = (
        superposition_report(nn.Sequential(nn.Identity()), "0", A, features=F, n_null=99)["superposition_ratio"]
        for F in (W, torch.cat([W, torch.zeros(40, 8)]))
    )
    assert other.value == pytest.approx(one.value)
    assert other.null.max() <= 5 / 8  # of five features, however random


def test_basis_and_dimensions_of_activations():
    g = torch.Generator().manual_seed(0)
    privileged = torch.relu(torch.randn(300, 1, generator=g)) * torch.tensor([[5.0, 1.0, 0.1, 0.1]])
    report = superposition_report(nn.Sequential(nn.Identity()), "0", privileged + 0.01 * torch.rand(300, 4, generator=g), n_null=99)
    assert report["active_dimensions"].value < report["active_dimensions"].null.min()  # one source drives all units
    assert report["active_dimensions"].established
    assert report["active_units"].value < report["active_units"].null.quantile(0.5)
    # Of twenty layers of independent units one is established on average, six or more with probability 0.03 %.
    independent = (torch.randn(80, 4, generator=g) for _ in range(20))
    reports = [superposition_report(nn.Sequential(nn.Identity()), "0", A, n_null=39, n_boot=20) for A in independent]
    assert sum(r["active_dimensions"].established for r in reports) < 6


def test_the_dimensions_of_activations_are_those_of_their_covariance():
    A = torch.randn(50, 4) * torch.tensor([2.0, 1.0, 1.0, 0.5]) + 7.0
    found = superposition_report(nn.Sequential(nn.Identity()), "0", A, n_null=9, n_boot=9)["active_dimensions"]
    values = torch.linalg.eigvalsh(torch.cov(A.T))
    assert found.value == pytest.approx(float(values.sum() ** 2 / values.square().sum()))


def test_a_report_is_saved_whole(tmp_path):
    report = superposition_report(nn.Sequential(nn.Linear(6, 4)), "0", torch.randn(20, 6), n_null=5, n_boot=5)
    report_path = tmp_path / "report.safetensors"
    report.save(report_path)
    assert load(report_path).summary() == report.summary()


def test_seed_decides_and_sampling_is_stated():
    net, x = nn.Sequential(nn.Conv2d(1, 3, 3)), torch.randn(20, 1, 6, 6)
    one, same, other = (superposition_report(net, "0", x, n_null=9, n_boot=9, max_samples=50, seed=s) for s in (1, 1, 2))
    assert one.summary() == same.summary()
    assert one.summary() != other.summary()
    assert one["active_units"].settings["samples"] == 50
    assert one["active_units"].n > 10  # of 20 inputs with 16 positions each, and not of the first four


def test_errors(unchecked):
    net, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(20, 6)
    with pytest.raises(ShapeError) as error:
        superposition_report(net, "0", x, features=random_directions(5, 3, generator=torch.Generator()))
    assert str(error.value) == "The features have 3 channels, and '0' has 4. Give directions in the channels of this hook point."
    with pytest.raises(ShapeError) as error:
        superposition_report(net, "0", x[:2])
    assert str(error.value) == "There are 2 samples at '0'. A report on superposition needs at least three."
    with pytest.raises(ShapeError) as error:
        superposition_report(net, "0", x, n_null=0)
    assert str(error.value) == "n_null=0, n_boot=200 and max_samples=4096. At least one draw of each is needed, and three samples."
    with pytest.raises(NonFiniteError, match=r"^The activations at '0' hold NaN or infinity\."):
        superposition_report(net, "0", x / 0)
    samples, labels = planted()
    with pytest.raises(ShapeError) as error:
        unit_polysemanticity(samples, labels[:5])
    assert str(error.value) == "labels has shape [5], and there are 120 inputs at 'units'. Give one concept an input."
    with pytest.raises(ShapeError) as error:
        unit_polysemanticity(samples, labels % 2)
    assert str(error.value) == (
        "There are 2 concepts with [60, 60] inputs. The polysemanticity of units needs at least 3 concepts with at least two inputs each."
    )
    with pytest.raises(NonFiniteError):
        unit_separability(Samples(samples.values / 0, samples.inputs, "units", 120), labels)


@pytest.mark.full
def test_a_trained_network():
    images, classes = cifar_test_images()
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:300]
    model = resnet20()
    last = superposition_report(model, "layer3.2.conv2", images[chosen], labels=classes[chosen], n_null=39, n_boot=49)
    first = superposition_report(model, "conv1", images[chosen], labels=classes[chosen], n_null=39, n_boot=49)
    # Classes are what the last layer is for, and not the first.
    assert last["separability"].established
    assert last["separability"].value > first["separability"].value
    assert last["active_dimensions"].established
    # Units of the last layer answer to fewer classes than chance would have it; those of the first to as many.
    assert last["polysemanticity"].established
    assert last["polysemanticity"].value < last["polysemanticity"].null.min()
    assert not first["polysemanticity"].established
