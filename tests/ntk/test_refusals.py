"""What is refused, and in which words."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechfeat.bench.oracles import ntk as oracle
from mechfeat.errors import (
    DeviceError,
    DtypeError,
    ModelOutputError,
    NondeterministicModelError,
    NonFiniteError,
    NoParametersError,
    OptionError,
    ProofError,
    SampleInteractionError,
    ShapeError,
    UnsupportedLayerError,
)
from mechfeat.models import mlp
from mechfeat.ntk import empirical_ntk, plan
from tests.ntk.test_exact import reduced
from tests.ntk.zoo import Net, P

pytestmark = pytest.mark.usefixtures("unchecked")


def x(n=6):
    return torch.randn(n, 5)


def net(f=lambda s, x: s.a(x)):
    return Net(f, a=nn.Linear(5, 3))


def assert_refused(error, message, model, *batches, **options):
    for run in (empirical_ntk, plan):
        chosen = options if run is empirical_ntk else {k: v for k, v in options.items() if k in ("outputs", "method")}
        with pytest.raises(error) as caught:
            run(model, *batches, **chosen)
        assert str(caught.value) == message


BATCH_NORM = (
    "batch_norm uses the statistics of the batch, so the output for one sample depends on the others and a per-sample kernel "
    "is not defined. Call model.eval(), so that it uses its running statistics."
)


def frozen_norm():
    norm = nn.BatchNorm1d(3)
    norm.requires_grad_(False)
    return norm


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm1d(3),
        frozen_norm,
        lambda: nn.BatchNorm1d(3, affine=False),
        lambda: nn.BatchNorm1d(3, track_running_stats=False).eval(),
    ],
)
@pytest.mark.parametrize("n", [2, 6])
def test_batch_norm_in_training(norm, n):
    assert_refused(SampleInteractionError, BATCH_NORM, nn.Sequential(nn.Linear(5, 3), norm()), x(n))


def test_functional_batch_norm_in_training():
    mean, var = torch.zeros(3), torch.ones(3)
    assert_refused(SampleInteractionError, BATCH_NORM, net(lambda s, x: F.batch_norm(s.a(x), mean, var, training=True)), x())
    assert_refused(SampleInteractionError, BATCH_NORM, net(lambda s, x: F.batch_norm(s.a(x), None, None, None, None, True)), x())


def active(name, p=0.5):
    return (
        f"{name} is active (p={p:g}), so two evaluations of the model differ and its kernel is a random variable. Call "
        "model.eval(), or set p to 0."
    )


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (lambda s, x: F.dropout(s.a(x)), "dropout"),
        (lambda s, x: F.dropout(s.a(x), 0.5, True), "dropout"),
        (lambda s, x: F.linear(x, F.dropout(s.a.weight)), "dropout"),
        (lambda s, x: torch.dropout(s.a(x), 0.5, True), "dropout"),
        (lambda s, x: F.alpha_dropout(s.a(x), training=True), "alpha_dropout"),
        (lambda s, x: F.feature_alpha_dropout(s.a(x), training=True), "feature_alpha_dropout"),
        (lambda s, x: F.dropout1d(s.a(x)[:, :, None])[:, :, 0], "dropout1d"),
        (
            lambda s, x: F.scaled_dot_product_attention(s.a(x)[:, None], x[:, None, :3], x[:, None, :3], dropout_p=0.5),
            "scaled_dot_product_attention",
        ),
    ],
)
def test_functional_dropout(f, name):
    assert_refused(NondeterministicModelError, active(name), net(f), x())


def test_dropout_module():
    model = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.25), nn.Linear(3, 2))
    assert_refused(NondeterministicModelError, active("dropout", 0.25), model, x())
    empirical_ntk(model.eval(), x())
    empirical_ntk(nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.0)), x())


@pytest.mark.parametrize(
    ("layer", "kind"),
    [(lambda: nn.MultiheadAttention(4, 2, dropout=0.5), "MultiheadAttention"), (lambda: nn.LSTM(4, 4, 2, dropout=0.5), "LSTM")],
)
def test_dropout_of_fused_layers(layer, kind):
    message = (
        f"a ({kind}) has dropout p=0.5 active, so two evaluations of the model differ and its kernel is a random "
        "variable. Call model.eval(), or set p to 0."
    )
    assert_refused(NondeterministicModelError, message, Net(lambda s, x: x, a=layer()), x())


def test_samples_that_interact():
    with pytest.raises(SampleInteractionError) as caught:
        empirical_ntk(net(lambda s, x: s.a(x) - s.a(x).mean(0)), x())
    gap = re.search(r"change by (\S+) when", str(caught.value))[1]
    assert (
        str(caught.value)
        == f"The outputs for 4 of the samples change by {gap} when the others are left out of the batch, so samples interact and a "
        "per-sample kernel is not defined. Batch statistics or attention over the batch axis do this; use model.eval() or remove it."
    )


@pytest.mark.parametrize("f", [lambda s, x: s.a(x).cumsum(0), lambda s, x: s.a(x).flip(0).cumsum(0), lambda s, x: s.a(x) + s.a(x)[[0]]])
@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_samples_that_see_earlier_ones(f, n):
    with pytest.raises((SampleInteractionError, ProofError)):
        empirical_ntk(net(f), x(n))


def test_random_forward():
    with pytest.raises(NondeterministicModelError) as caught:
        empirical_ntk(net(lambda s, x: s.a(x) + torch.rand(3)), x())
    gap = re.search(r"differ by (\S+)\. A", str(caught.value))[1]
    assert (
        str(caught.value) == f"Two evaluations of the model on the same input differ by {gap}. A kernel needs a deterministic model: "
        "call model.eval(), and fix any random draws in its forward."
    )


OUTPUTS = [
    (
        lambda s, x: (s.a(x), x),
        (
            "The model returned a tuple; a kernel needs one tensor of outputs. Wrap it in a module that returns the "
            "tensor, such as out.logits[:, -1]."
        ),
    ),
    (
        lambda s, x: {"logits": s.a(x)},
        (
            "The model returned a dict; a kernel needs one tensor of outputs. Wrap it in a module that returns the tensor, "
            "such as out.logits[:, -1]."
        ),
    ),
    (
        lambda s, x: s.a(x).argmax(1),
        "The model returned torch.int64, which has no gradient. Return its real-valued outputs, before any argmax.",
    ),
    (
        lambda s, x: s.a(x).to(torch.complex128),
        "The model returned torch.complex128, which has no gradient. Return its real-valued outputs, before any argmax.",
    ),
    (lambda s, x: s.a(x).T, "The model returned shape (3, 6) for 6 samples of x1. Its first axis must be the samples."),
    (lambda s, x: s.a(x).sum(), "The model returned shape () for 6 samples of x1. Its first axis must be the samples."),
    (
        lambda s, x: s.a(x)[:, :0],
        "The model returned shape (6, 0) for 6 samples of x1, which holds no outputs. A kernel needs at least one a sample.",
    ),
    (
        lambda s, x: s.a(x).unflatten(1, (3, 1))[:, :, :0],
        "The model returned shape (6, 3, 0) for 6 samples of x1, which holds no outputs. A kernel needs at least one a sample.",
    ),
]


@pytest.mark.parametrize(("f", "message"), OUTPUTS)
def test_outputs(f, message):
    assert_refused(ModelOutputError, message, net(f), x())


def test_output_is_not_finite():
    message = "The model's output holds NaN or infinity for 2 of 6 samples of x1, the first of them number 3."
    bad = torch.tensor([0.0, 0, 0, float("inf"), 0, float("nan")])[:, None]
    assert_refused(NonFiniteError, message, net(lambda s, x: s.a(x) + bad), x())


def test_no_parameters():
    message = "The model has no trainable parameters (0 frozen), so its tangent kernel is empty. Give a model with parameters."
    assert_refused(NoParametersError, message, nn.ReLU(), x())


def test_every_parameter_frozen():
    message = (
        "The model has no trainable parameters (2 frozen), so its tangent kernel is empty. Set requires_grad on those "
        "the kernel shall be over."
    )
    assert_refused(NoParametersError, message, net().requires_grad_(False), x())


def test_integer_parameters():
    def whole():
        return nn.Parameter(torch.arange(15).view(3, 5), requires_grad=False)

    message = (
        "The model has no trainable parameters (1 frozen), so its tangent kernel is empty. They are torch.int64, which has no gradient: "
        "quantised weights have to be floating-point again first."
    )
    assert_refused(NoParametersError, message, Net(lambda s, x: F.linear(x, s.w.double()), w=whole()), x())
    # beside others they are constants
    model = Net(lambda s, x: F.linear(x, s.w.double()) + s.a(x), w=whole(), a=nn.Linear(5, 3))
    batch = x()
    torch.testing.assert_close(empirical_ntk(model, batch).kernel, empirical_ntk(model.a, batch).kernel)


def test_meta_device():
    message = (
        "'weight' and 1 more parameters and buffers are on the meta device, which holds shapes and no values. Build the model on a real "
        "device, or load its weights: model.to_empty(device=...) and model.load_state_dict(...)."
    )
    assert_refused(DeviceError, message, nn.Linear(5, 3, device="meta"), x())
    assert_refused(DeviceError, message, nn.Linear(5, 3, device="meta"), x().to("meta"))


def test_meta_device_in_part():
    message = (
        "'a.weight' and 1 more parameters and buffers are on the meta device, which holds shapes and no values. Build the model on a real "
        "device, or load its weights: model.to_empty(device=...) and model.load_state_dict(...)."
    )
    frozen = nn.Linear(5, 5, device="meta").requires_grad_(False)
    assert_refused(DeviceError, message, Net(lambda s, x: s.b(s.a(x)), a=frozen, b=nn.Linear(5, 3)), x())


def test_lazy_parameter():
    message = "Parameter 'weight' has no shape yet. Run the model once on an input before asking for its kernel."
    assert_refused(UnsupportedLayerError, message, nn.LazyLinear(3), x())


def test_device():
    message = "x1 is on meta and the model on cpu. Move one of them: x.to('cpu')."
    assert_refused(DeviceError, message, net(), x().to("meta"))
    assert_refused(DeviceError, message.replace("x1", "x2"), net(), x(), x().to("meta"))


def test_devices_of_the_model():
    message = (
        "The trainable parameters are on cpu ('0.weight' and 1 more), meta ('1.weight' and 1 more). A kernel needs one device; move with "
        "model.to(device)."
    )
    assert_refused(DeviceError, message, nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2, device="meta")), x())


def test_dtype_of_the_input():
    message = "x1 is torch.float32 and the model torch.float64. Convert one of them: x.to(torch.float64)."
    assert_refused(DtypeError, message, net(), x().float())


def test_dtypes_of_the_model():
    message = (
        "The trainable parameters have torch.float32 ('1.weight'), torch.float64 ('0.weight' and 1 more). A kernel needs one real dtype; "
        "convert with model.to(dtype)."
    )
    assert_refused(DtypeError, message, nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2, bias=False).float()), x())


COMPLEX = (
    "{} complex (torch.complex128), for which gradients and kernels need a conjugate that none is agreed on. Hold real and imaginary parts "
    "as real parameters, joined in the forward by torch.complex."
)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
def test_complex_parameters():
    message = COMPLEX.format("'a.weight' and 1 more of the 2 trainable parameters are")
    assert_refused(DtypeError, message, net().to(torch.complex128), x())


def test_one_complex_parameter():
    def f(s, x):
        return s.a(x) + (x.to(torch.complex128) @ s.w).abs()

    w = nn.Parameter(torch.randn(5, 3, dtype=torch.complex128))
    message = COMPLEX.format("'w' of the 3 trainable parameters is")
    assert_refused(DtypeError, message, Net(f, a=nn.Linear(5, 3), w=w), x())
    # frozen it is a constant, and its real and imaginary parts are parameters like others
    batch = x()
    frozen = Net(f, a=nn.Linear(5, 3), w=nn.Parameter(w.detach(), requires_grad=False))
    torch.testing.assert_close(empirical_ntk(frozen, batch).kernel, empirical_ntk(frozen.a, batch).kernel)
    parts = Net(lambda s, x: (x.to(torch.complex128) @ torch.complex(s.u, s.v)).abs(), u=P(5, 3), v=P(5, 3))
    literal = sum(oracle.empirical_ntk(parts, batch).values())
    torch.testing.assert_close(empirical_ntk(parts, batch, prove="always").kernel, literal)


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_parameters_are_not_finite(bad):
    model = mlp([5, 4, 2])
    with torch.no_grad():
        model[0].weight[1, 2:4] = bad
    message = "{} NaN or infinity (2 of 20 entries of '0.weight'). Did training diverge, or a file not load? Freeze what is not in use."
    assert_refused(NonFiniteError, message.format("'0.weight' of the 4 trainable parameters holds"), model, x())
    with torch.no_grad():
        model[2].bias[0] = bad
    assert_refused(NonFiniteError, message.format("'0.weight' and 1 more of the 4 trainable parameters hold"), model, x())


def test_a_frozen_mask_of_infinities_is_fine():
    mask = nn.Parameter(torch.tensor([0.0, -float("inf"), 0.0]), requires_grad=False)
    model = Net(lambda s, x: (s.a(x) + s.mask).softmax(1), a=nn.Linear(5, 3), mask=mask)
    assert torch.isfinite(empirical_ntk(model, x()).kernel).all()


def test_parameters_without_entries():
    model, batch = Net(lambda s, x: s.a(x) + s.b(x[:, :0]), a=nn.Linear(5, 3), b=nn.Linear(1, 3)), x()
    model.b.weight = nn.Parameter(torch.empty(3, 0))
    literal = sum(oracle.empirical_ntk(model, batch).values())
    for outputs in ("full", "trace", "diagonal"):
        torch.testing.assert_close(empirical_ntk(model, batch, outputs=outputs, prove="always").kernel, reduced(literal, outputs))


def test_input_is_no_tensor():
    message = "x1 is a list. It must be one tensor with samples along its first axis; wrap a model that takes several."
    assert_refused(DtypeError, message, net(), [1.0])


@pytest.mark.parametrize("shape", [(0, 5), ()])
def test_empty_batch(shape):
    message = f"x1 has shape {shape}, which holds no samples. It needs at least one along its first axis."
    assert_refused(ShapeError, message, net(), torch.zeros(shape))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_input_is_not_finite(bad):
    batch = x()
    batch[2, 1] = batch[4, 0] = bad
    assert_refused(NonFiniteError, "x1 holds NaN or infinity in 2 of 6 samples, the first of them number 2.", net(), batch)
    assert_refused(NonFiniteError, "x2 holds NaN or infinity in 2 of 6 samples, the first of them number 2.", net(), x(), batch)


def test_complex_input():
    model = Net(lambda s, z: s.a(torch.cat([z.real, z.imag], 1)), a=nn.Linear(10, 3))
    batch = torch.complex(x(), x())
    literal = sum(oracle.empirical_ntk(model, batch).values())
    torch.testing.assert_close(empirical_ntk(model, batch).kernel, literal)
    batch[2, 1] = float("nan")
    assert_refused(NonFiniteError, "x1 holds NaN or infinity in 1 of 6 samples, the first of them number 2.", model, batch)


def test_a_gradient_is_not_finite():
    model = net(lambda s, x: (s.a(x).detach() + 0 * s.a(x)).sub(s.a(x).detach()).sqrt())  # zero, where a square root has no derivative
    with pytest.raises(ProofError):
        empirical_ntk(model, x())


def test_outputs_of_the_two_batches_differ():
    message = "The model gives 2 outputs a sample for x1 and 4 for x2. A kernel between them needs the same outputs."
    assert_refused(ShapeError, message, net(lambda s, t: s.a(t)[..., 0]), torch.ones(3, 2, 5), torch.ones(3, 4, 5))


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("outputs", "'full', 'trace', 'diagonal', 'pseudo', 'the number of a class', 'a function of the outputs'"),
        ("method", "'auto', 'block', 'gram', 'mixed', 'jacobian'"),
        ("prove", "'once', 'always', 'never'"),
    ],
)
def test_options(option, allowed):
    message = f"{option}='best' is not known. It can be {allowed}."
    if option == "prove":
        with pytest.raises(OptionError) as caught:
            empirical_ntk(net(), x(), prove="best")
        assert str(caught.value) == message
    else:
        assert_refused(OptionError, message, net(), x(), **{option: "best"})


@pytest.mark.parametrize("prove", ["once", "never"])
def test_strict_with_an_uncovered_parameter(prove):
    model = Net(lambda s, x: s.a(x) * s.w.sin() @ s.u.exp(), a=nn.Linear(5, 3), w=P(3), u=P(3, 2))
    for _ in range(2):
        with pytest.raises(UnsupportedLayerError) as caught:
            empirical_ntk(model, x(), strict=True, prove=prove)
        assert (
            str(caught.value)
            == "strict=True, and no rule covers 'w' (sin has no rule), 'u' (exp has no rule). Leave strict off to compute "
            "these parameters by "
            "autograd, or register a rule with mechfeat.ntk.register_rule."
        )


def test_strict_where_all_is_covered():
    result = empirical_ntk(mlp([5, 4, 2]), x(), strict=True)
    assert {c.path for c in result.coverage} == {"rule"}


def test_an_error_of_the_model_is_its_own():
    def f(s, x):
        raise KeyError("mine")

    for run in (empirical_ntk, plan):
        with pytest.raises(KeyError, match="mine"):
            run(net(f), x())
