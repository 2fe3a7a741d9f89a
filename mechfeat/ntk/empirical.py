"""The empirical neural tangent kernel: exact, proved, planned.

One forward pass, one backward pass over activations an output, or a few outputs at a time; each parameter's gradient factors are
contracted inside the last of them and dropped. No Jacobian of the network ever exists.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mechfeat.errors import NonFiniteError, OptionError, ProofError, UnsupportedLayerError
from mechfeat.hooks import HookedModel, unwrap
from mechfeat.kernels.precision import tf32
from mechfeat.ntk import readout
from mechfeat.ntk.checks import check_input, check_model, check_values
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
    max_memory: int | None = None,
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
        max_memory: Most bytes to take beside the model and its inputs. The batches are then captured in blocks, the largest that are
            predicted to fit, and the kernel computed tile by tile; what a block's rows meet is captured once for each other block.
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
        MemoryCapError: Not even one sample at a time fits in ``max_memory``; the error names the smallest that would do.

    Cost:
        ``(1 + o) n`` forward passes, and the contractions of :func:`plan`. The first call adds a forward and a backward
        on four samples and on the batch; for a trace over more outputs than the last hidden layer is wide, as many backward passes on four
        samples as that is wide.

    Source:
        Jacot et al. 2018, *Neural Tangent Kernel*; Novak et al. 2022, *Fast Finite Width Neural Tangent Kernel*.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> empirical_ntk(net, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), outputs="trace").kernel
        tensor([[1., 1.],
                [1., 2.]])
    """
    module = unwrap(model)
    _check_options(outputs, method, prove, max_memory)
    repeat = repeatable(module) and not callable(outputs)  # what a function does is no part of what is remembered
    with readout.reading(module, outputs):
        return _kernel(module, x1, x2, outputs, layerwise, method, max_memory, strict, prove, seed, repeat)


def _kernel(
    module: nn.Module,
    x1: Tensor,
    x2: Tensor | None,
    outputs: Chosen,
    layerwise: bool,
    method: Method,
    max_memory: int | None,
    strict: bool,
    prove: Prove,
    seed: int,
    remember: bool,
) -> NTKResult:
    parameters = check_model(module, values=False)
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
    banned = dict.fromkeys(parameters, "method='jacobian'") if method == "jacobian" else {}
    with torch.inference_mode(False), exact(module):
        try:
            if max_memory is not None:
                job.fit(max_memory, banned)
            state = job.run(banned)
        except NonFiniteError:
            check_values(parameters)  # what is wrong with them is the better answer
            raise
        known = PROVED.get(state.key) if prove == "once" and remember else None
        if known is None:
            check_values(parameters)
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
    model: nn.Module | HookedModel,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    outputs: Chosen = "full",
    layerwise: bool = False,
    method: Method = "auto",
    max_memory: int | None = None,
) -> Plan:
    """What a kernel would cost: contraction, multiply-adds, memory and seconds of each parameter. The kernel is not computed.

    Seconds are predicted from rates that are measured once a process, in a fraction of a second.

    Args:
        model: The model.
        x1: A batch; the model is run forward on it once, and once backward to see at which positions gradients arrive.
        x2: Another batch.
        outputs: As for :func:`empirical_ntk`.
        layerwise: As for :func:`empirical_ntk`.
        method: As for :func:`empirical_ntk`.
        max_memory: As for :func:`empirical_ntk`.

    Returns:
        A plan, which prints as a table.

    Raises what :func:`empirical_ntk` raises before it computes.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> [(r.parameter, r.contraction, r.macs) for r in plan(net, torch.ones(4, 8)).rows]
        [('0.weight', 'gram', 1232), ('0.bias', 'folded', 0), ('2.weight', 'output', 272), ('2.bias', 'folded', 0)]
    """
    module = unwrap(model)
    _check_options(outputs, method, "never", max_memory)
    parameters = check_model(module)
    one = next(iter(parameters.values()))
    xs = (check_input(x1, "x1", one),) if x2 is None else (check_input(x1, "x1", one), check_input(x2, "x2", one))
    job = Job(module, parameters, xs, readout.kept(outputs), method, layerwise, 0)
    banned = dict.fromkeys(parameters, "method='jacobian'") if method == "jacobian" else {}
    with torch.inference_mode(False), readout.reading(module, outputs), exact(module):
        if max_memory is not None:
            job.fit(max_memory, banned)
        made = job.plan(banned)
    return _shown(made, outputs, readout.name_of(outputs))


def _check_options(outputs: Any, method: str, prove: str, max_memory: Any) -> None:
    if max_memory is not None and (isinstance(max_memory, bool) or not isinstance(max_memory, int) or max_memory <= 0):
        raise OptionError("max_memory", max_memory, ("a positive number of bytes", None))
    for option, value, allowed in (
        ("method", method, ("auto", "block", "gram", "mixed", "jacobian")),
        ("prove", prove, ("once", "always", "never")),
    ):
        if value not in allowed:
            raise OptionError(option, value, allowed)
    readout.check(outputs)
