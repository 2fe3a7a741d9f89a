"""Checks of models and inputs before a kernel is computed."""

from typing import Any

import torch
from torch import Tensor, nn

from mechfeat.errors import (
    DeviceError,
    DtypeError,
    ModelOutputError,
    NondeterministicModelError,
    NonFiniteError,
    NoParametersError,
    ShapeError,
    UnsupportedLayerError,
)
from mechfeat.ntk.capture import trainable


def check_model(module: nn.Module, values: bool = True) -> dict[str, nn.Parameter]:
    """Check that a kernel over the model's parameters exists.

    Args:
        module: The model.
        values: Whether to look at the values of parameters too, which reads them all.

    Returns:
        Its trainable parameters.

    Raises:
        NoParametersError: There are none.
        DtypeError: Parameters of several dtypes, or complex ones.
        DeviceError: Parameters on several devices, or without values (meta).
        NonFiniteError: A trainable parameter holds NaN or infinity.
        NondeterministicModelError: A fused layer draws dropout masks.
        UnsupportedLayerError: A lazy parameter has no shape yet.
    """
    parameters = trainable(module)
    if not parameters:
        frozen = list(module.parameters())
        whole = sorted({str(p.dtype) for p in frozen if not (p.is_floating_point() or p.is_complex())})
        advice = "Set requires_grad on those the kernel shall be over." if frozen else "Give a model with parameters."
        if whole and all(not (p.is_floating_point() or p.is_complex()) for p in frozen):
            advice = f"They are {', '.join(whole)}, which has no gradient: quantised weights have to be floating-point again first."
        raise NoParametersError(f"The model has no trainable parameters ({len(frozen)} frozen), so its tangent kernel is empty. {advice}")
    lazy = [n for n, p in parameters.items() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise UnsupportedLayerError(f"Parameter {lazy[0]!r} has no shape yet. Run the model once on an input before asking for its kernel.")
    unreal = [n for n, p in parameters.items() if p.is_complex()]
    if unreal:
        raise DtypeError(
            f"{_listed(unreal)} of the {len(parameters)} trainable parameters {'is' if len(unreal) == 1 else 'are'} complex "
            f"({parameters[unreal[0]].dtype}), for which gradients and kernels need a conjugate that none is agreed on. Hold real and "
            "imaginary parts as real parameters, joined in the forward by torch.complex."
        )
    dtypes = _grouped({n: str(p.dtype) for n, p in parameters.items()})
    if len(dtypes) > 1:
        raise DtypeError(f"The trainable parameters have {_counted(dtypes)}. A kernel needs one real dtype; convert with model.to(dtype).")
    devices = _grouped({n: str(p.device) for n, p in parameters.items()})
    if len(devices) > 1:
        raise DeviceError(f"The trainable parameters are on {_counted(devices)}. A kernel needs one device; move with model.to(device).")
    meta = [n for n, p in (*module.named_parameters(), *module.named_buffers()) if p.device.type == "meta"]
    if meta:
        raise DeviceError(
            f"{meta[0]!r} and {len(meta) - 1} more parameters and buffers are on the meta device, which holds shapes and no values. Build "
            "the model on a real device, or load its weights: model.to_empty(device=...) and model.load_state_dict(...)."
        )
    for path, m in module.named_modules():
        p = getattr(m, "dropout", 0.0)
        if isinstance(m, nn.MultiheadAttention | nn.RNNBase) and m.training and isinstance(p, float) and p > 0:
            raise NondeterministicModelError(
                f"{path or 'the model'} ({type(m).__name__}) has dropout p={p:g} active, so two evaluations of the model differ "
                "and its kernel is a random variable. Call model.eval(), or set p to 0."
            )
    if values:
        check_values(parameters)
    return parameters


def check_values(parameters: dict[str, nn.Parameter]) -> None:
    """Check that parameters are numbers.

    Args:
        parameters: Name and parameter.

    Raises:
        NonFiniteError: Some hold NaN or infinity.
    """
    bad = [n for n, p in parameters.items() if not bool(torch.isfinite(p.detach()).all())]
    if bad:
        entries = int((~torch.isfinite(parameters[bad[0]].detach())).sum())
        raise NonFiniteError(
            f"{_listed(bad)} of the {len(parameters)} trainable parameters {'holds' if len(bad) == 1 else 'hold'} NaN or infinity "
            f"({entries} of {parameters[bad[0]].numel()} entries of {bad[0]!r}). Did training diverge, or a file not load? Freeze what is "
            "not in use."
        )


def check_input(x: Any, side: str, parameter: nn.Parameter) -> Tensor:
    """Check a batch.

    Args:
        x: The batch.
        side: ``x1`` or ``x2``, for messages.
        parameter: One of the model's parameters.

    Returns:
        The batch; outside inference mode, so that autograd may keep it.

    Raises:
        DtypeError: It is no tensor, or floating-point of another dtype than the model.
        ShapeError: It has no sample axis or no samples.
        DeviceError: It is on another device than the model.
        NonFiniteError: It holds NaN or infinity.
    """
    if not isinstance(x, Tensor):
        raise DtypeError(
            f"{side} is a {type(x).__name__}. It must be one tensor with samples along its first axis; wrap a model that takes several."
        )
    if x.ndim == 0 or x.shape[0] == 0:
        raise ShapeError(f"{side} has shape {tuple(x.shape)}, which holds no samples. It needs at least one along its first axis.")
    if x.device != parameter.device:
        raise DeviceError(
            f"{side} is on {x.device} and the model on {parameter.device}. Move one of them: x.to({str(parameter.device)!r})."
        )
    if x.is_floating_point() and x.dtype != parameter.dtype:
        raise DtypeError(f"{side} is {x.dtype} and the model {parameter.dtype}. Convert one of them: x.to({parameter.dtype}).")
    if x.is_floating_point() or x.is_complex():
        bad = ~torch.isfinite(x).flatten(1).all(1) if x.ndim > 1 else ~torch.isfinite(x)
        if bool(bad.any()):
            raise NonFiniteError(
                f"{side} holds NaN or infinity in {int(bad.sum())} of {len(x)} samples, the first of them number "
                f"{int(bad.nonzero()[0, 0])}."
            )
    if x.is_inference():
        x = x.clone()
    return x.detach()


def check_output(y: Any, n: int, side: str) -> Tensor:
    """Check what the model returned, and flatten its outputs to one axis.

    Args:
        y: The output.
        n: Number of samples.
        side: ``x1`` or ``x2``, for messages.

    Returns:
        ``[n o]``.

    Raises:
        ModelOutputError: It is no floating-point tensor with one row a sample.
        NonFiniteError: It holds NaN or infinity.
    """
    if not isinstance(y, Tensor):
        raise ModelOutputError(
            f"The model returned a {type(y).__name__}; a kernel needs one tensor of outputs. Wrap it in a module that "
            "returns the tensor, such as out.logits[:, -1]."
        )
    if not y.is_floating_point():
        raise ModelOutputError(f"The model returned {y.dtype}, which has no gradient. Return its real-valued outputs, before any argmax.")
    if y.ndim == 0 or y.shape[0] != n:
        raise ModelOutputError(f"The model returned shape {tuple(y.shape)} for {n} samples of {side}. Its first axis must be the samples.")
    shape, y = tuple(y.shape), y.reshape(n, y.numel() // n)
    if y.shape[1] == 0:
        raise ModelOutputError(
            f"The model returned shape {shape} for {n} samples of {side}, which holds no outputs. A kernel needs at least one a sample."
        )
    if not bool(torch.isfinite(y).all()):
        bad = (~torch.isfinite(y).all(1)).nonzero()[:, 0]
        raise NonFiniteError(
            f"The model's output holds NaN or infinity for {len(bad)} of {n} samples of {side}, the first of them number {int(bad[0])}."
        )
    return y


def _grouped(found: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, what in found.items():
        groups.setdefault(what, []).append(name)
    return dict(sorted(groups.items()))


def _counted(groups: dict[str, list[str]]) -> str:
    return ", ".join(f"{what} ({_listed(names)})" for what, names in groups.items())


def _listed(names: list[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
