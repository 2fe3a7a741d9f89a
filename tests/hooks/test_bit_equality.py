"""Recording changes nothing, and what is recorded is what passed."""

import pytest
import torch
from torch import nn

import mechfeat as mf
from mechfeat.errors import UnsupportedModelError
from mechfeat.models import CifarResNet

from . import nets

DTYPES = [torch.float32, torch.bfloat16]
REQUESTS = {"out": "**", "in": "**:in", "both": "**:*"}


@pytest.mark.parametrize("options", [{}, {"grad": True}, {"clone": True}, {"grad": True, "clone": True}], ids=str)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", nets.MODELS)
def test_outputs_are_bit_equal(name, dtype, request_, options):
    net, x = nets.build(name, dtype)
    plain = net(x)
    model = mf.HookedModel(net)
    for _ in range(2):  # the second run knows what is overwritten
        out, _ = model.run_with_cache(x, request_, **options)
        nets.assert_same(out, plain)
    assert type(out) is type(plain)
    nets.assert_same(net(x), plain)


@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", nets.MODELS)
def test_outputs_are_bit_equal_without_gradients(name, dtype, mode):
    net, x = nets.build(name, dtype)
    with mode():
        plain = net(x)
        out, _ = mf.HookedModel(net).run_with_cache(x, "**:*")
    nets.assert_same(out, plain)


@pytest.mark.parametrize("options", [{}, {"grad": True}, {"clone": True}], ids=str)
@pytest.mark.parametrize("name", nets.MODELS)
def test_captures_are_copies_made_by_hand(name, options):
    net, x = nets.build(name, torch.float32)
    kept = nets.captured_by_hand(net, x)
    model = mf.HookedModel(net)
    for _ in range(3):
        _, cache = model.run_with_cache(x, "**:*", **options)
        found = {}
        for key, value in cache.items():
            h = mf.hooks.HookName.parse(key)
            if (h.path, h.side) in kept:  # points have no module
                found.setdefault((h.path, h.side), {}).setdefault(h.call or 0, []).append(value)
        assert {key: sum(map(len, calls)) for key, calls in kept.items() if any(calls)} == {
            k: sum(map(len, c.values())) for k, c in found.items()
        }
        for key, calls in found.items():
            for call, values in calls.items():
                nets.assert_same(values, kept[key][call])


@pytest.mark.parametrize("grad", [False, True])
def test_captures_of_an_in_place_cnn_are_those_of_its_out_of_place_twin(grad):
    net, x = nets.build("cnn", torch.float32)
    clean = nets.CNN(inplace=False).float()
    clean.load_state_dict(net.state_dict())
    model, other = mf.HookedModel(net), mf.HookedModel(clean)
    for _ in range(3):
        found = model.run_with_cache(x, "**:*", grad=grad)[1]
        expected = other.run_with_cache(x, "**:*", clone=True)[1]
        assert list(found) == list(expected)
        for key in expected:
            assert torch.equal(found[key], expected[key]), key


class OutOfPlaceBlock(nn.Module):
    """The block of CifarResNet without in-place operations, with its submodules."""

    def __init__(self, block):
        super().__init__()
        for name, child in block.named_children():
            setattr(self, name, child)
        self.relu = nn.ReLU()
        self.stride, self.grow = block.stride, block.grow

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        skip = x[:, :, :: self.stride, :: self.stride]
        return self.relu(y + nn.functional.pad(skip, (0, 0, 0, 0, self.grow // 2, self.grow - self.grow // 2)))


def out_of_place(net):
    clean = nets.twin(net)
    clean.relu = nn.ReLU()
    for stage in (clean.layer1, clean.layer2, clean.layer3):
        for i, block in enumerate(stage):
            stage[i] = OutOfPlaceBlock(block)
    return clean


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_captures_of_a_resnet_are_those_of_its_out_of_place_twin(grad, train):
    net, x = nets.resnet(train).float(), torch.randn(2, 3, 8, 8, dtype=torch.float32)
    clean = out_of_place(net)
    model, other = mf.HookedModel(net), mf.HookedModel(clean)
    expected = other.run_with_cache(x, clone=True)[1]
    for _ in range(3):
        found = model.run_with_cache(x, grad=grad)[1]
        assert set(found) == set(expected)
        for key in expected:
            assert torch.equal(found[key], expected[key]), key


def test_input_of_a_module_is_kept_when_its_producer_is_overwritten_later():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            h = self.a(x)
            y = self.b(h).tanh()
            h += y  # the stream that b read is overwritten after b
            return h

    net, x = Residual(), torch.randn(2, 3)
    expected = net.a(x).detach()
    out, cache = mf.HookedModel(net).run_with_cache(x, ["b:in", "b"], grad=True)
    assert torch.equal(cache["b:in"], expected)
    gradient = cache.gradients(out.sum())["b:in"]
    torch.testing.assert_close(gradient, (1 - torch.tanh(net.b(expected)) ** 2) @ net.b.weight)


def padded(batch_first):
    torch.manual_seed(0)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 2:] = mask[2, 4:] = True
    x = torch.randn(3, 5, 16)
    return x if batch_first else x.transpose(0, 1), mask


@pytest.fixture
def unfused():
    """torch's encoder layers without their fused path, which is taken only where no hook is attached and rounds otherwise."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch_first", "nested"), [(True, True), (True, False), (False, False)])
def test_encoder_with_padding_mask(batch_first, nested, dtype, train, grad):
    torch.manual_seed(0)
    net = nets.encoder(batch_first, nested).to(dtype).train(train)
    x, mask = padded(batch_first)
    x = x.to(dtype)
    with torch.set_grad_enabled(grad):
        plain = net(x, src_key_padding_mask=mask)
        out, cache = mf.HookedModel(net).run_with_cache(x, "**:*", src_key_padding_mask=mask)
    nets.assert_same(out, plain)
    for key in cache:
        assert cache[key].shape  # nested tensors have none
    assert set(cache.unreached) == {f"layers.{i}.self_attn.out_proj" for i in (0, 1)}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("nested", [False, True])
def test_fused_encoder_is_taken_apart_and_differs_by_rounding(nested):
    net, (x, mask) = nets.encoder(nested=nested).float().eval(), padded(True)
    x = x.float()
    with torch.no_grad():
        plain = net(x, src_key_padding_mask=mask)
        out, cache = mf.HookedModel(net).run_with_cache(x, "**:*", src_key_padding_mask=mask)
    assert len(cache) > 30
    for key in cache:
        assert cache[key].shape  # nested tensors have none
    keep = ~mask[..., None]
    # Two layers of normalised activations of size 1 to 3, float32 resolution 1.2e-7, some ten roundings each.
    torch.testing.assert_close(out * keep, plain * keep, rtol=0, atol=1e-5)
    nets.assert_same(net.train()(x), net(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_captures_are_padded_with_zeros():
    net, (x, mask) = nets.encoder(nested=True).eval(), padded(True)
    dense = nets.encoder(nested=False).eval()
    dense.load_state_dict(net.state_dict())
    with torch.no_grad():
        model = mf.HookedModel(net)
        found, *later = (model.run_with_cache(x, "layers.0", src_key_padding_mask=mask)[1]["layers.0"] for _ in range(4))
        expected = mf.HookedModel(dense).record(x, "layers.0", src_key_padding_mask=mask)["layers.0"]
        rows = {r.name: r for r in mf.HookedModel(net).describe(x, src_key_padding_mask=mask)}
        assert (rows["layers.0"].axes, rows["layers.0"].shape) == (("sample", "pos", "channel"), (3, 5, 16))
    torch.testing.assert_close(found, expected.masked_fill(mask[..., None], 0.0))
    assert all(torch.equal(x, found) for x in later)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_activations_refuse_edits():
    net, (x, mask) = nets.encoder(nested=True).eval(), padded(True)
    with torch.no_grad(), pytest.raises(UnsupportedModelError) as caught, mf.HookedModel(net).hooks(mf.Ablate("layers.0")):
        net(x, src_key_padding_mask=mask)
    assert (
        str(caught.value) == "layers.0#0 holds a nested tensor, which can be recorded without graph, but not edited. "
        "Build the encoder with enable_nested_tensor=False."
    )


def test_wrapping_adds_nothing_to_the_module():
    net = CifarResNet(8, width=4)
    before = {path: dict(m.__dict__) for path, m in net.named_modules()}
    model = mf.HookedModel(net)
    model.hook_names()
    assert model.module is net
    assert mf.HookedModel(model).module is net
    assert {path: dict(m.__dict__) for path, m in net.named_modules()} == before


def test_the_fused_encoder_path_is_noted():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        _, cache = mf.HookedModel(encoder).run_with_cache(x, ":out")
    assert cache.notes[0].startswith("nn.TransformerEncoderLayer leaves its fused path where a hook is present")
    assert cache.notes[0] in repr(cache)
    _, cache = mf.HookedModel(encoder).run_with_cache(x, ":out")
    assert cache.notes == ()
