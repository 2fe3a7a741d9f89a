"""The empirical neural tangent kernel: exact, proved, planned.

One forward pass, one backward pass over activations an output, or a few outputs at a time; each parameter's gradient factors are
contracted inside the last of them and dropped. No Jacobian of the network ever exists.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mechfeat.errors import OptionError, ProofError, UnsupportedLayerError
from mechfeat.hooks import HookedModel, unwrap
from mechfeat.kernels.precision import tf32
from mechfeat.ntk import readout
from mechfeat.ntk.checks import check_input, check_model
from mechfeat.ntk.fingerprint import Proved, repeatable
from mechfeat.ntk.job import Job
from mechfeat.ntk.planner import Plan
from mechfeat.ntk.precision import exact
from mechfeat.ntk.readout import Chosen
from mechfeat.ntk.result import NTKResult
from mechfeat.ntk.verify import proved, reasons

Method = Literal["auto", "block", "gram", "mixed", "jacobian"]
Prove = Literal["once", "always", "never"]
PROVED = Proved()


def empirical_ntk(
    model: nn.Module | HookedModel,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: Chosen = "full",
    layerwise: bool = False,
    method: Method = "auto",
    strict: bool = False,
    prove: Prove = "once",
    seed: int = 0,
) -> NTKResult:
    r"""Kernel of the gradients of a model's outputs with respect to its trainable parameters.

    .. math:: Θ_{no,mp} = \sum_θ \Big\langle \frac{∂ f_o(x_n)}{∂θ}, \frac{∂ f_p(x'_m)}{∂θ} \Big\rangle

    Exact up to rounding. Parameters that no rule covers, or whose part fails the completeness proof, are computed by
    autograd; the result says which. A model output with several axes counts as one axis of outputs.

    Args:
        model: The model, in the mode it shall be used in. Frozen parameters do not count.
        x1: A batch, samples along the first axis.
        x2: Another batch; by default the kernel is that of ``x1`` with itself, and equals its transpose bit for bit.
        outputs: ``"full"`` for all pairs of outputs, ``"trace"`` for the sum over equal outputs, ``"diagonal"`` for equal
            outputs kept apart; ``"pseudo"`` for the sum of the outputs, a number for that class alone, or a function from outputs
            ``[n o]`` to ``[n]`` or ``[n p]``, whose kernel it then is. The last three cost as much as a model with so many outputs.
        layerwise: Keep each parameter's part; they take as much memory again, for each parameter.
        method: ``"auto"`` takes the cheapest contraction for each parameter. ``"block"`` forms each sample's weight gradient,
            ``"gram"`` multiplies Gram matrices, ``"mixed"`` carries gradients through the Gram of the inputs, ``"jacobian"`` takes
            autograd for every parameter; all are exact.
        strict: Raise where a parameter would be computed by autograd, rather than compute it so.
        prove: ``"once"`` checks every parameter's part against an independent gradient the first time this kind of model,
            input and options is met in the process, ``"always"`` each time, ``"never"`` not at all (then models whose samples
            interact, or that are random, are not detected either).
        seed: Seed of the proof's cotangents and samples. Nothing else is random.

    Returns:
        Kernel, plan and coverage. The dtype is that of the model; float32 for half precision.

    Raises:
        OptionError: An option has an unknown value.
        UnsupportedLayerError: ``strict``, and a parameter is not covered by a rule.
        ProofError: ``strict``, and a parameter's part failed the proof; or the total failed, which autograd does not mend.
        ShapeError: The two batches give different numbers of outputs.

    Cost:
        ``(1 + o) n`` forward passes, and the contractions of :func:`plan`. The first call adds a forward and a backward
        on four samples and on the batch.

    Source:
        Jacot et al. 2018, *Neural Tangent Kernel*; Novak et al. 2022, *Fast Finite Width Neural Tangent Kernel*.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> empirical_ntk(net, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), outputs="trace").kernel
        tensor([[1., 1.],
                [1., 2.]])
    """
    module = unwrap(model)
    _check_options(outputs, method, prove)
    repeat = repeatable(module) and not callable(outputs)  # what a function does is no part of what is remembered
    with readout.reading(module, outputs):
        return _kernel(module, x1, x2, outputs, layerwise, method, strict, prove, seed, repeat)


def _kernel(
    module: nn.Module,
    x1: Tensor,
    x2: Tensor | None,
    outputs: Chosen,
    layerwise: bool,
    method: Method,
    strict: bool,
    prove: Prove,
    seed: int,
    remember: bool,
) -> NTKResult:
    parameters = check_model(module)
    one = next(iter(parameters.values()))
    xs = (check_input(x1, "x1", one),) if x2 is None else (check_input(x1, "x1", one), check_input(x2, "x2", one))
    job = Job(
        module,
        parameters,
        xs,
        readout.kept(outputs),
        method,
        layerwise,
        seed,
        read=readout.name_of(outputs),
    )
    with torch.inference_mode(False), exact(module):
        state = job.run(dict.fromkeys(parameters, "method='jacobian'") if method == "jacobian" else {})
        known = PROVED.get(state.key) if prove == "once" and remember else None
        failed: dict[str, float] = {}
        if known:
            state, failed = job.run(reasons(known)), known
        found: dict[str, float] = {}
        if prove == "always" or (prove == "once" and known is None):
            key = state.key
            state, found, failed = proved(job, state, strict)
            if remember and not (strict and failed):  # a strict call stops before what failed was computed by autograd and proved
                PROVED.put(key, failed)
    unfit = {n: r for n, r in state.unfit.items() if n not in failed and method != "jacobian"}
    if strict and unfit:
        raise UnsupportedLayerError(
            "strict=True, and no rule covers "
            + ", ".join(f"{n!r} ({r})" for n, r in unfit.items())
            + ". Leave strict off to compute these parameters by autograd, or register a rule with mechfeat.ntk.register_rule."
        )
    if strict and failed:
        raise ProofError(list(failed), list(failed.values()), "Leave strict off to compute these parameters by autograd.")
    coverage = tuple(replace(c, gap=found.get(c.parameter)) for c in state.coverage)
    settings = {
        "method": method,
        "prove": prove,
        "seed": seed,
        "dtype": str(one.dtype),
        "device": str(one.device),
        "n_outputs": state.o,
        "tf32": tf32(),
    }
    word = readout.name_of(outputs)
    layers = {name: readout.squeezed(layer, outputs) for name, layer in state.layers.items()} if layerwise else None
    kernel = readout.squeezed(state.kernel, outputs)
    shown = _shown(state.plan, outputs, word)
    if kernel.ndim == 4:
        word = "full"  # of what the function returns
    return NTKResult(kernel, word, layers, shown, coverage, prove != "never", settings)


def _shown(plan: Plan, outputs: Chosen, word: str) -> Plan:
    shape = plan.kernel_shape
    return plan if readout.kept(outputs) == outputs else replace(plan, outputs=word, kernel_shape=shape[::2] if shape[1] == 1 else shape)


def plan(
    model: nn.Module | HookedModel, x1: Tensor, x2: Tensor | None = None, *, outputs: Chosen = "full", method: Method = "auto"
) -> Plan:
    """What a kernel would cost: contraction, multiply-adds and memory of each parameter. The kernel is not computed.

    Args:
        model: The model.
        x1: A batch; the model is run forward on it once, and once backward to see at which positions gradients arrive.
        x2: Another batch.
        outputs: As for :func:`empirical_ntk`.
        method: As for :func:`empirical_ntk`.

    Returns:
        A plan, which prints as a table.

    Raises what :func:`empirical_ntk` raises before it computes.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> [(r.parameter, r.contraction, r.macs) for r in plan(net, torch.ones(4, 8)).rows]
        [('0.weight', 'gram', 1232), ('0.bias', 'folded', 0), ('2.weight', 'output', 272), ('2.bias', 'folded', 0)]
    """
    module = unwrap(model)
    _check_options(outputs, method, "never")
    parameters = check_model(module)
    one = next(iter(parameters.values()))
    xs = (check_input(x1, "x1", one),) if x2 is None else (check_input(x1, "x1", one), check_input(x2, "x2", one))
    job = Job(module, parameters, xs, readout.kept(outputs), method, False, 0)
    with torch.inference_mode(False), readout.reading(module, outputs), exact(module):
        made = job.plan(dict.fromkeys(parameters, "method='jacobian'") if method == "jacobian" else {})
    return _shown(made, outputs, readout.name_of(outputs))


def _check_options(outputs: Any, method: str, prove: str) -> None:
    for option, value, allowed in (
        ("method", method, ("auto", "block", "gram", "mixed", "jacobian")),
        ("prove", prove, ("once", "always", "never")),
    ):
        if value not in allowed:
            raise OptionError(option, value, allowed)
    readout.check(outputs)
