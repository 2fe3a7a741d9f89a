"""Activation patching against one patch at a time, and where the answer is known."""

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.circuits import PatchingFinding, activation_patching
from mechfeat.errors import CircuitError, OptionError, SampleInteractionError, SelectorError, ShapeError
from tests.hooks import nets


def literal(net, clean, corrupted, metric, name, where):
    """One patch in one plain forward pass, written entry by entry with torch's own hooks."""
    kept = {}
    module = dict(net.named_modules())[name]

    def keep(m, i, o):
        kept["a"] = o.clone()

    def put(m, i, o):
        o = o.clone()
        o[where] = kept["a"][where]
        return o

    with torch.no_grad():
        handle = module.register_forward_hook(keep)
        net(clean)
        handle.remove()
        handle = module.register_forward_hook(put)
        out = metric(net(corrupted))
        handle.remove()
    return out


def last_logit(out):
    return out.logits[:, -1, 3] - out.logits[:, -1, 5]


def gpt2():
    net, x = nets.build("gpt2")
    return net, x, x.flip(1)


@pytest.mark.parametrize("batch", [1, 4, 7, 64])
def test_every_patch_is_that_of_a_literal_loop(batch):
    net, clean, corrupted = gpt2()
    points = ["transformer.h.0.mlp", "transformer.h.1.mlp", "transformer.ln_f"]
    found = activation_patching(net, clean, corrupted, last_logit, points, positions="each", batch=batch)
    assert found.axes == ("point", "pos")
    assert found.points == tuple(points)
    assert found.metrics.shape == (3, clean.shape[1], len(clean))
    for i, name in enumerate(points):
        for pos in range(clean.shape[1]):
            want = literal(net, clean, corrupted, last_logit, name, (slice(None), pos))
            torch.testing.assert_close(found.metrics[i, pos], want)
    a, b = last_logit(net(clean)).detach(), last_logit(net(corrupted)).detach()
    torch.testing.assert_close(found.clean, a)
    torch.testing.assert_close(found.corrupted, b)
    torch.testing.assert_close(found.scores, (found.metrics.mean(-1) - b.mean()) / (a.mean() - b.mean()))


def test_images_are_patched_height_by_width():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 2 * 3, 2)).eval()
    clean, corrupted = torch.randn(3, 1, 4, 5), torch.randn(3, 1, 4, 5)
    found = activation_patching(net, clean, corrupted, lambda y: y[:, 0], "0", positions="each", batch=10)
    assert found.axes == ("point", "height", "width")
    for h in range(2):
        for w in range(3):
            want = literal(net, clean, corrupted, lambda y: y[:, 0], "0", (slice(None), slice(None), h, w))
            torch.testing.assert_close(found.metrics[0, h, w], want)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.z, self.out = nn.Identity(), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.z(x).sum((1, 2)))


@pytest.mark.parametrize("positions", [None, "each"])
def test_heads_are_patched_one_by_one(positions):
    net = Heads()
    model = mf.HookedModel(net, axes={"z": ("sample", "pos", "head", "channel")})
    clean, corrupted = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    found = activation_patching(model, clean, corrupted, lambda y: y[:, 1], "z", positions=positions, heads="each")
    assert found.axes == (("point", "head") if positions is None else ("point", "pos", "head"))
    for p in range(2):
        for h in range(5):
            where = (slice(None), slice(None) if positions is None else p, h)
            want = literal(net, clean, corrupted, lambda y: y[:, 1], "z", where)
            torch.testing.assert_close(found.metrics[(0, h) if positions is None else (0, p, h)], want)


def test_a_layer_that_everything_passes_through_restores_everything():
    net, clean, corrupted = gpt2()
    found = activation_patching(net, clean, corrupted, last_logit, ["transformer.h.0:out", "transformer.h.1"])
    torch.testing.assert_close(found.scores, torch.ones(2))
    assert found.value == pytest.approx(1.0)
    assert found.interval == pytest.approx((1.0, 1.0))


def test_the_score_is_one_where_the_answer_is_carried_and_zero_elsewhere():
    """Channel 0 at position 1 alone reaches the output."""

    class Planted(nn.Module):
        def __init__(self):
            super().__init__()
            self.h = nn.Linear(2, 2)

        def forward(self, x):
            return self.h(x)[:, 1]

    found = activation_patching(Planted(), torch.randn(6, 3, 2), torch.randn(6, 3, 2), lambda y: y[:, 0], "h", positions="each")
    torch.testing.assert_close(found.scores, torch.tensor([[0.0, 1.0, 0.0]]))
    assert found.strongest(1)[0][:2] == ("h", (1,))
    assert found.reliability == pytest.approx(1.0)
    assert not found.established


# --- the null


class Units(nn.Module):
    """Three places, of which `signal` alone carries the answer; `other` is read and does not matter, `noise` breaks what it is changed"
    " in."""

    def __init__(self):
        super().__init__()
        self.signal, self.other, self.noise = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x):
        s, u, v, w = x.unbind(1)
        return self.signal(s[:, None])[:, 0] + 0 * self.other(u[:, None])[:, 0] + (self.noise(v[:, None])[:, 0] - w).square()


def pairs(n, shift, generator):
    """The clean answer is higher by `shift` on average; what `noise` reads is unlike in the two runs, and each run is in tune with"
    " itself."""
    clean, corrupted = torch.randn(2, n, 4, generator=generator)
    clean[:, 0] += shift
    clean[:, 3], corrupted[:, 3] = clean[:, 2], corrupted[:, 2]
    return clean, corrupted


def same(y):
    return y


def test_the_unit_that_carries_the_answer_is_established_and_others_are_not():
    clean, corrupted = pairs(20, 3.0, torch.Generator().manual_seed(0))
    found = {p: activation_patching(Units(), clean, corrupted, same, p) for p in ("signal", "other", "noise")}
    assert found["signal"].established
    assert found["signal"].p_value == pytest.approx(1 / 1001)
    assert found["other"].value == 0
    assert found["other"].p_value == 1
    assert not found["other"].established
    # Any other activation raises the answer here as much, so that a test of the effect's direction alone would believe it.
    effect = (found["noise"].metrics - found["noise"].corrupted)[0]
    assert effect.min() > 0
    assert not found["noise"].established
    clean[:, 0] += 6
    p = activation_patching(Units(), clean, corrupted, same, ["signal", "other", "noise"]).p_values
    assert p[0] <= 0.05 < min(p[1], p[2])


def test_the_control_is_the_corrupted_run_of_another_pair():
    clean, corrupted = pairs(8, 3.0, torch.Generator().manual_seed(0))
    found = activation_patching(Units(), clean, corrupted, same, "signal")
    # The metric is v = signal there: each input got the signal of another, and each signal was used once.
    assert (found.control[0] - corrupted[:, 0]).abs().min() > 0
    torch.testing.assert_close(found.control[0].sort().values, corrupted[:, 0].sort().values)


def test_an_activation_that_is_the_same_in_both_runs_is_never_established():
    clean, corrupted = pairs(20, 3.0, torch.Generator().manual_seed(0))
    clean[:, 2:], corrupted[:, 2:] = torch.randn(20, 2), torch.randn(20, 2)
    clean[:, 2] = corrupted[:, 2] = clean[:, 3] = corrupted[:, 3]
    corrupted[:, 3] += 5  # a mismatched activation moves the answer, and the clean one cannot
    found = activation_patching(Units(), clean, corrupted, same, "noise")
    assert found.value == 0
    assert found.p_value == 1


def rate(make, point, shift, n=8, runs=100, of=same):
    """Share of analyses that stand out from their null."""
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for seed in range(runs):
        clean, corrupted = pairs(n, shift, generator)
        found = activation_patching(make(), clean, corrupted, of, point, n_null=199, n_boot=2, seed=seed)
        hits += found.p_value <= 0.05
    return hits / runs


# 100 analyses at a true rate of 0.05 give more than 0.12 with probability 0.002.
@pytest.mark.parametrize(("point", "shift"), [("signal", 0.0), ("noise", 0.0), ("noise", 3.0), (["signal", "noise"], 0.0)])
def test_without_an_effect_it_stands_out_at_most_at_the_nominal_rate(point, shift):
    assert rate(Units, point, shift) <= 0.12


def test_with_an_effect_it_stands_out():
    assert rate(Units, "signal", 3.0, runs=30) >= 0.9


@pytest.mark.parametrize(("n", "reason"), [(1, "1 pair of inputs, and a null needs 6"), (5, "5 pairs of inputs, and a null needs 6")])
def test_too_few_pairs_for_a_null_say_so(n, reason):
    clean, corrupted = pairs(n, 3.0, torch.Generator().manual_seed(0))
    found = activation_patching(Units(), clean, corrupted, same, "signal")
    assert found.null is None
    assert found.p_values is None
    assert not found.established
    assert found.summary().endswith(f"not established ({reason})")
    assert activation_patching(Units(), *pairs(6, 3.0, torch.Generator()), same, "signal", n_null=0).summary().endswith("(n_null is 0)")


def test_reliability_is_the_agreement_of_halves():
    net = Units()
    clean, corrupted = pairs(40, 3.0, torch.Generator().manual_seed(0))
    assert activation_patching(net, clean, corrupted, same, "signal").reliability == pytest.approx(1.0)
    assert activation_patching(net, clean, corrupted, same, "other").reliability == 0
    assert activation_patching(net, clean[:3], corrupted[:3], same, "signal").reliability is None
    weak = activation_patching(net, clean, clean + torch.randn(40, 4), lambda y: y, "noise", n_null=0)
    assert weak.reliability < 0.9


def test_points_that_fire_twice_and_globs():
    net, clean, corrupted = nets.Chain(), torch.randn(4, 3), torch.randn(4, 3)
    found = activation_patching(net, clean, corrupted, lambda y: y[:, 0], ["relu#*", "a"])
    assert sorted(found.points) == ["a", "relu#0", "relu#1"]
    scores = dict(zip(found.points, found.scores.tolist()))
    assert scores["a"] == pytest.approx(1.0)
    assert scores["relu#1"] == pytest.approx(1.0)


def test_patching_an_input_leaves_the_skip_connection_alone():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(2, 2)

        def forward(self, x):
            return self.f(x) + 3 * x

    net, clean, corrupted = Residual(), torch.randn(4, 2), torch.randn(4, 2)
    found = activation_patching(net, clean, corrupted, lambda y: y[:, 0], "f:in")
    torch.testing.assert_close(found.metrics[0], (3 * corrupted + net.f(clean))[:, 0].detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_agrees_with_float64(dtype):
    net, clean, corrupted = gpt2()
    points = ["transformer.h.0.mlp", "transformer.h.1.mlp"]
    want = activation_patching(net.double(), clean, corrupted, last_logit, points, positions="each")
    found = activation_patching(net.to(dtype), clean, corrupted, last_logit, points, positions="each")
    assert found.metrics.dtype == torch.float32
    # Weights, activations and logits are each rounded; the two blocks have about eight roundings one after another.
    tolerance = 8 * torch.finfo(dtype).eps * float(net(clean).logits.detach().abs().max())
    torch.testing.assert_close(found.metrics.double(), want.metrics, rtol=0, atol=tolerance)


def test_it_is_saved_and_loaded(tmp_path):
    net, clean, corrupted = gpt2()
    found = activation_patching(net, clean, corrupted, last_logit, "transformer.h.*.mlp")
    found.save(tmp_path / "f.safetensors")
    again = PatchingFinding.load(tmp_path / "f.safetensors")
    assert torch.equal(again.scores, found.scores)
    assert again.points == found.points


def test_the_model_is_left_as_it_was():
    net, clean, corrupted = gpt2()
    before = net(clean).logits
    activation_patching(net, clean, corrupted, last_logit, "transformer.h.*.mlp")
    assert nets.hook_count(net) == 0
    assert torch.equal(net(clean).logits, before)


# --- what it refuses


def test_samples_that_depend_on_each_other():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    with pytest.raises(SampleInteractionError) as caught:
        activation_patching(net, torch.randn(4, 2), torch.randn(4, 2), lambda y: y[:, 0], "0")
    with pytest.raises(SampleInteractionError):
        activation_patching(net.bfloat16(), torch.randn(4, 2).bfloat16(), 9 * torch.randn(4, 2).bfloat16(), lambda y: y[:, 0], "0")
    assert str(caught.value).startswith("An unpatched copy of the corrupted inputs gives a metric that is ")
    assert str(caught.value).endswith(
        " away from that of the corrupted run: the output for one sample depends on the other samples of the batch, "
        "or on random numbers, so patches cannot share a pass. Call model.eval()."
    )


def test_nothing_to_restore():
    net, x = nn.Linear(2, 1), torch.ones(3, 2)
    with pytest.raises(CircuitError) as caught:
        activation_patching(nn.Sequential(net), x, x, lambda y: y[:, 0] * 0 + 2, "0")
    assert (
        str(caught.value)
        == "The metric is 2 in the clean and 2 in the corrupted run, so there is nothing to restore. Give inputs, or a metric, that differ."
    )


def test_runs_of_different_shapes():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ShapeError) as caught:
        activation_patching(net, torch.randn(3, 4, 2), torch.randn(3, 5, 2), lambda y: y[:, 0, 0], "0")
    assert (
        str(caught.value) == "Clean and corrupted run have activations of different shapes at '0': (3, 4, 2) and (3, 5, 2). "
        "Give inputs of one shape, in pairs."
    )


@pytest.mark.usefixtures("unchecked")
def test_a_metric_of_another_shape():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ShapeError) as caught:
        activation_patching(net, torch.randn(3, 2), torch.randn(3, 2), lambda y: y.sum(), "0")
    assert str(caught.value) == "The metric gave shape (). It must give one number an input, such as logits[:, 3]."
    with pytest.raises(ShapeError) as caught:
        activation_patching(net, torch.randn(3, 2), torch.randn(3, 2), lambda y: y[0], "0")
    assert str(caught.value) == "The metric gave 2 numbers, and '0' holds 3 samples. It must give one number an input."


def test_points_without_the_axis_or_of_different_sizes():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 1))
    clean, corrupted = torch.randn(3, 1, 6, 6), torch.randn(3, 1, 6, 6)
    with pytest.raises(SelectorError) as caught:
        activation_patching(net, clean, corrupted, lambda y: y[:, 0], ["0", "1"], positions="each")
    assert (
        str(caught.value) == "The points have different axes to patch along, which make no grid: '0': {'height': 4, 'width': 4}; "
        "'1': {'height': 2, 'width': 2}. Ask for them in separate calls."
    )
    for option, missing in (({"positions": "each"}, "position"), ({"heads": "each"}, "head")):
        with pytest.raises(SelectorError) as caught:
            activation_patching(net, clean, corrupted, lambda y: y[:, 0], "3", **option)
        assert (
            str(caught.value) == f"'3' has no {missing} axis to patch along: its axes are {{'sample': 3, 'channel': 1}}. "
            "Leave it out, or name its axes: HookedModel(net, axes=...)."
        )


@pytest.mark.usefixtures("unchecked")
def test_options_that_are_not_known():
    net, x = nn.Sequential(nn.Linear(2, 2)), torch.randn(3, 2)
    with pytest.raises(OptionError) as caught:
        activation_patching(net, x, -x, lambda y: y[:, 0], "0", positions="all")
    assert str(caught.value) == "positions='all' is not known. It can be None, 'each'."
    with pytest.raises(OptionError) as caught:
        activation_patching(net, x, -x, lambda y: y[:, 0], "0", batch=0)
    assert str(caught.value) == "batch=0 is not known. It can be 'a number of inputs, at least 1'."
    with pytest.raises(OptionError) as caught:
        activation_patching(net, x, -x, lambda y: y[:, 0], "0", n_null=-1)
    assert str(caught.value) == "n_null=-1 is not known. It can be 'a number of draws, 0 for no null'."
