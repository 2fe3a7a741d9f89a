"""Directions and polytopes: ideal coordinates, counting that does not depend on order, graphs, a fixed position."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechfeat.errors import NonFiniteError, OptionError
from mechfeat.features import load
from mechfeat.superposition import (
    GREEDY_ANGLE,
    NAMED_FRACTIONS,
    POLYTOPES,
    canonicalise,
    count_directions,
    direction_curve,
    feature_dimensionality,
    feature_graph,
    group_directions,
    identify,
    merge_directions,
    polytope,
)
from tests.strategies import matrices, orthogonal

SIX = {"own dimension": 1, "digon": 1 / 2, "triangle": 2 / 3, "tetrahedron": 3 / 4, "pentagon": 2 / 5, "square antiprism": 3 / 8}


@pytest.mark.parametrize(("name", "value"), SIX.items())
def test_ideal_coordinates_have_the_named_fraction(name, value):
    # Check 2: to 1e-12 in float64.
    D = feature_dimensionality(polytope(name))
    torch.testing.assert_close(D, torch.full_like(D, value), rtol=0, atol=1e-12)
    assert NAMED_FRACTIONS[name] == value


@pytest.mark.parametrize("name", POLYTOPES)
def test_each_polytope_is_known_again(name):
    W = polytope(name)
    turned = W @ torch.linalg.qr(torch.randn(W.shape[1], W.shape[1])).Q
    assert identify(1.7 * turned[torch.randperm(len(W))]) == name
    assert identify(W + 0.01 * torch.randn(W.shape)) == name  # as training leaves it


def cube():
    return torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)]) / math.sqrt(3)


def test_a_cube_is_not_an_antiprism():
    # Both are tight frames of 8 in 3, with D = 3/8 throughout.
    torch.testing.assert_close(feature_dimensionality(cube()), feature_dimensionality(polytope("square antiprism")))
    assert identify(cube()) == "other"


def test_lopsided_pentagon_is_other():
    W = polytope("pentagon").clone()
    W[0] *= 1.3
    assert identify(W) == "other"


def test_tegum_factors():
    parts = ["pentagon", "digon", "square antiprism", "own dimension", "digon"]
    W = torch.block_diag(*(polytope(p) for p in parts))
    Q = torch.linalg.qr(torch.randn(W.shape[1], W.shape[1])).Q
    order = torch.randperm(len(W))
    padded = torch.cat([W[order] @ Q, torch.zeros(2, W.shape[1])])
    graph = feature_graph(padded)
    assert graph.summary() == "1 x square antiprism + 1 x pentagon + 2 x digon + 1 x own dimension"
    assert graph.component[-2:].tolist() == [-1, -1]
    assert sum(f.n_dimensions for f in graph.factors) == W.shape[1]
    assert sorted(i for f in graph.factors for i in f.features) == list(range(len(W)))
    for f in graph.factors:
        assert (graph.component[list(f.features)] == graph.component[f.features[0]]).all()
    unit = torch.nn.functional.normalize(padded, dim=-1)
    torch.testing.assert_close(graph.cosines, (unit[graph.edges[:, 0]] * unit[graph.edges[:, 1]]).sum(-1), rtol=0, atol=1e-12)
    assert feature_graph(torch.zeros(2, 2)).summary() == "nothing represented"


def test_a_square_is_two_digons():
    assert feature_graph(polytope("square")).summary() == "2 x digon"


def test_a_graph_is_saved_whole(tmp_path):
    graph = feature_graph(polytope("pentagon"))
    graph.save(tmp_path / "graph.safetensors")
    found = load(tmp_path / "graph.safetensors")
    assert found.summary() == "1 x pentagon"
    assert torch.equal(found.edges, graph.edges)


# Counting


def literal_components(W, angle):
    unit = torch.nn.functional.normalize(W, dim=-1)
    near = torch.rad2deg(torch.acos((unit @ unit.T).clamp(-1, 1))) <= angle
    reached = near | torch.eye(len(W), dtype=torch.bool)
    for _ in range(len(W)):
        reached = (reached.double() @ reached.double()) > 0
    return len({tuple(row) for row in reached.tolist()})


def repository_rule(W, tolerance):
    """Groups as the notebooks make them: a vector joins the first group whose first member has a cosine above 1 − tolerance."""
    firsts = []
    for w in W:
        if not any(torch.dot(w, f) / (w.norm() * f.norm()) > 1 - tolerance for f in firsts):
            firsts.append(w)
    return len(firsts)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([2, 3, 5]), st.sampled_from([3.3, 20.7, 61.1]))
def test_components_match_the_transitive_closure(seed, n, m, angle):
    W = torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
    assert count_directions(W, angle) == literal_components(W, angle)
    assert count_directions(W, angle, rule="greedy") == repository_rule(W, 1 - math.cos(math.radians(angle)))


@pytest.mark.parametrize("rule", ["components", "complete"])
@settings(max_examples=30)
@given(data=st.data())
def test_order_rotation_and_length_do_not_matter(rule, data):
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    W = torch.randn(9, 3, generator=g)
    order = torch.randperm(9, generator=g)
    Q = data.draw(orthogonal(3))
    moved = (W * (torch.rand(9, 1, generator=g) + 0.1))[order] @ Q
    angles = [5.1, 25.8, 50.2, 100.3]
    assert torch.equal(direction_curve(moved, angles, rule=rule).counts, direction_curve(W, angles, rule=rule).counts)


def test_the_greedy_rule_depends_on_order():
    angles = torch.deg2rad(torch.tensor([0.0, 20.0, 40.0]))
    W = torch.stack([angles.cos(), angles.sin()], -1)
    assert count_directions(W, GREEDY_ANGLE, rule="greedy") == 2
    assert count_directions(W[[1, 0, 2]], GREEDY_ANGLE, rule="greedy") == 1
    assert count_directions(W, GREEDY_ANGLE) == count_directions(W[[1, 0, 2]], GREEDY_ANGLE) == 1
    assert pytest.approx(25.842, abs=1e-3) == GREEDY_ANGLE


@given(matrices(scales=False))
def test_a_curve_falls_from_the_distinct_rays_to_one_group(W):
    angles = [0.001, 1, 10, 45, 90, 179]
    complete, joined = direction_curve(W, angles, rule="complete").counts, direction_curve(W, angles).counts
    assert (joined.diff() <= 0).all()
    assert (complete.diff() <= 0).all()
    assert (joined <= complete).all()  # chains join more
    assert (joined <= (W != 0).any(-1).sum()).all()


def test_tiny_angles_are_resolved():
    # The arc cosine of a cosine near 1 knows angles to 1e-6 degrees; these differ by 1e-8.
    angle = math.radians(1e-8)
    W = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    assert direction_curve(W, [0.9e-8, 1.1e-8]).counts.tolist() == [2, 1]


def test_instances_and_dead_rows():
    W = torch.stack([torch.cat([polytope("pentagon")] * 2), torch.zeros(10, 2), torch.cat([polytope("square"), torch.zeros(6, 2)])])
    curve = direction_curve(W.view(3, 1, 10, 2), [1, 80, 95])
    assert curve.counts.shape == (3, 1, 3)
    assert curve.counts[:, 0].tolist() == [[5, 1, 1], [0, 0, 0], [4, 4, 1]]


def test_groups_and_what_they_weigh():
    s = polytope("pentagon")
    W = torch.cat([0.6 * s, torch.zeros(1, 2), 0.8 * s])
    assert group_directions(W, 5).tolist() == [0, 1, 2, 3, 4, -1, 0, 1, 2, 3, 4]
    torch.testing.assert_close(merge_directions(W, 5), s)
    assert merge_directions(torch.zeros(3, 2), 5).shape == (0, 2)
    for rule in ("complete", "greedy"):
        assert torch.equal(group_directions(W, 5, rule=rule), group_directions(W, 5))


# A fixed position


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_canonical_position_does_not_depend_on_rotation(seed):
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(6, 3, generator=g)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=g)).Q
    found = canonicalise(W)
    torch.testing.assert_close(canonicalise(W @ Q), found, rtol=0, atol=1e-9)
    spectrum = torch.linalg.svdvals
    torch.testing.assert_close(spectrum(found), spectrum(W))
    torch.testing.assert_close(found.norm(dim=-1).sort().values, W.norm(dim=-1).sort().values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-11, 1.0])
def test_a_rotation_changes_nothing_in_either_precision(dtype, scale):
    """Three equal corners, an uneven pair and a feature of its own: rounding must neither order nor span anything."""
    W = torch.block_diag(polytope("triangle"), torch.tensor([[1.0], [-0.5]]), torch.tensor([[0.7]])) * scale
    for _ in range(5):
        found = canonicalise((W @ torch.linalg.qr(torch.randn(4, 4)).Q).to(dtype))
        torch.testing.assert_close(found.double(), canonicalise(W), rtol=0, atol=8 * torch.finfo(dtype).eps * scale)


def test_factors_stand_in_their_own_coordinates():
    W = torch.block_diag(polytope("digon"), polytope("pentagon"), 2 * polytope("own dimension"))
    Q = torch.linalg.qr(torch.randn(4, 4)).Q
    found = canonicalise(W[torch.randperm(8)] @ Q)
    assert (found[:5, 2:] == 0).all()
    assert (found[5:, :2] == 0).all()
    assert found[5:7, 2].tolist() == pytest.approx([1.0, -1.0])


def test_rays_exactly_as_far_apart_as_the_tolerance_count_as_one():
    assert [int(count_directions(torch.eye(3), angle)) for angle in (90, 89.999)] == [1, 3]


PEAK = """
import resource, scipy.cluster.hierarchy, scipy.spatial.distance, torch
from mechfeat.superposition import count_directions
W = torch.randn(1000, 256)
count_directions(W[:50], 30)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count_directions(W, 30)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.full
def test_angles_take_no_more_memory_than_pairs():
    """A thousand directions of 256 channels: 8 MB a matrix of pairs, and 2 GB one of differences."""
    found = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    assert int(found.stdout) < 200_000  # KiB


# Errors


def test_errors():
    W = torch.eye(2)
    with pytest.raises(OptionError) as error:
        count_directions(W, 180)
    assert str(error.value) == "angle=180 is not known. It can be 'degrees from 0 to below 180'."
    with pytest.raises(OptionError) as error:
        polytope("cube")
    assert str(error.value).startswith("name='cube' is not known. It can be 'own dimension', 'digon'")
    for f in (feature_graph, canonicalise, lambda W: count_directions(W, 3)):
        with pytest.raises(NonFiniteError) as error:
            f(torch.tensor([[1.0, float("inf")]]))
        assert str(error.value) == "W, of shape [1, 2], holds NaN or infinity, which points nowhere. `torch.isfinite(W)` shows where."


def test_an_unknown_rule(unchecked):
    with pytest.raises(OptionError) as error:
        count_directions(torch.eye(2), 3, rule="single")
    assert str(error.value) == "rule='single' is not known. It can be 'components', 'complete', 'greedy'."
