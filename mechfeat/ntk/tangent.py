"""Products with the Jacobian of a model and its transpose, proved on the batch before they are used.

``Jᵀu`` is one backward pass. ``J g`` is one forward-mode pass or, where an operation has none, the derivative of ``Jᵀu`` with respect to
u (the double-backward trick). Which of them a model supports is tried, and what it gives is compared with the backward pass.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mechfeat.errors import ProofError, UnsupportedLayerError
from mechfeat.ntk.capture import Capture, trainable
from mechfeat.ntk.checks import check_output
from mechfeat.ntk.precision import exact
from mechfeat.ntk.proof import alone, compare, cotangent, proof_samples, tolerances
from mechfeat.ntk.taps import quiet

Gradient = Mapping[str, Tensor]
Push = Callable[[nn.Module, Tensor, Gradient], Tensor]


def pull(module: nn.Module, x: Tensor, u: Float[Tensor, "n o"]) -> dict[str, Tensor]:
    """``Jᵀu`` by one backward pass.

    Args:
        module: The model.
        x: A batch.
        u: Cotangents of its outputs, flattened.

    Returns:
        Parameter name → gradient of ``⟨u, f(x)⟩``, zero where the model does not depend on it.
    """
    parameters = trainable(module)
    with torch.enable_grad():
        y = module(x.clone()).reshape(len(x), -1)
        found = torch.autograd.grad(y, list(parameters.values()), u, allow_unused=True) if y.requires_grad else [None] * len(parameters)
    return {
        name: torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g for (name, p), g in zip(parameters.items(), found)
    }


def push_forward(module: nn.Module, x: Tensor, g: Gradient) -> Float[Tensor, "n o"]:
    """``J g`` by forward-mode differentiation.

    Args:
        module: The model.
        x: A batch.
        g: A direction in the space of parameters.

    Returns:
        Derivative of the outputs along it.
    """
    values = {name: p.detach() for name, p in trainable(module).items()}

    def outputs(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, values, (x.clone(),), tie_weights=True).reshape(len(x), -1)

    with differentiable(module), quiet():
        return torch.func.jvp(outputs, (values,), (dict(g),))[1].detach()


def push_twice_backward(module: nn.Module, x: Tensor, g: Gradient) -> Float[Tensor, "n o"]:
    """``J g`` as the derivative of ``⟨g, Jᵀu⟩`` with respect to u.

    Args:
        module: The model.
        x: A batch.
        g: A direction in the space of parameters.

    Returns:
        Derivative of the outputs along it.

    Raises:
        RuntimeError: A backward of the model is not differentiable.
    """
    parameters = trainable(module)
    with torch.enable_grad(), differentiable(module):
        y = module(x.clone()).reshape(len(x), -1)
        if not y.requires_grad:
            return torch.zeros_like(y)
        u = torch.zeros_like(y, requires_grad=True)
        pulled = torch.autograd.grad(y, list(parameters.values()), u, create_graph=True, allow_unused=True)
        both = [(p, g[name]) for name, p in zip(parameters, pulled) if p is not None and p.requires_grad]
        found = torch.autograd.grad([p for p, _ in both], u, [d for _, d in both], allow_unused=True)[0] if both else None
    if found is None:
        raise RuntimeError("a backward does not depend on the gradient it is given, or cannot be differentiated")
    return found.detach()


WAYS: dict[str, Push] = {"forward": push_forward, "double backward": push_twice_backward}


def verify(module: nn.Module, x: Tensor, side: str, seed: int, chunk_size: int) -> tuple[int, str]:
    """Check that a model has a Jacobian of separate samples, and find a way to multiply by it.

    Four samples are run among each other and by themselves. Then ``⟨u, J g⟩ = ⟨Jᵀu, g⟩`` is required on the whole batch, with random u and
    g, where the right side is a plain backward pass. A few samples would not do: a derivative can be wrong for certain inputs alone.

    Args:
        module: The model.
        x: A batch.
        side: ``x1`` or ``x2``, for messages.
        seed: Seed of samples, cotangents and directions.
        chunk_size: Samples run at once.

    Returns:
        Number of outputs, flattened, and the name of the way.

    Raises:
        UnsupportedLayerError: No way runs on this model.
        ProofError: A way runs and none of those that do gives the derivative.

    What :func:`check_output`, :func:`compare` and the capture refuse is raised as well.
    """
    generator = torch.Generator().manual_seed(seed)
    few = x[proof_samples(len(x), generator)]
    y = check_output(Capture(module, len(few), {}).forward(few), len(few), side).detach()
    compare(module, few, check_output(_plain(module, few), len(few), side), y)
    alone(module, few, y)
    g = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64, device="cpu").to(p) for name, p in trainable(module).items()}
    chunks, us, want, scale = x.split(chunk_size), [], 0.0, 0.0
    for chunk in chunks:
        us.append(cotangent(len(chunk), y.shape[1], y, generator))
        pulled = pull(module, chunk, us[-1])
        want += sum(float((pulled[n].double() * g[n].double()).sum()) for n in g)
        scale += sum(float(pulled[n].double().norm() * g[n].double().norm()) for n in g)
    reasons, gaps = [], []
    for way, push in WAYS.items():
        try:
            have = sum(float((u.double() * push(module, chunk, g).double()).sum()) for chunk, u in zip(chunks, us))
        except Exception as error:
            reasons.append(f"{way}: {' '.join(str(error).split())[:160]}")
            continue
        if abs(have - want) <= tolerances(y.dtype)[0] * scale:
            return y.shape[1], way
        gaps.append(abs(have - want) / scale if scale else float("inf"))
    if gaps:
        raise ProofError(
            ["the derivative along a direction"], [min(gaps)], "Is every backward and forward-mode derivative of this model right?"
        )
    raise UnsupportedLayerError(
        f"This model has no product with its Jacobian ({'; '.join(reasons)}). Compute the kernel itself with mechfeat.ntk.empirical_ntk, "
        "or give the operation a `jvp` or a differentiable backward."
    )


def _plain(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x.clone())


@contextmanager
def differentiable(module: nn.Module) -> Iterator[None]:
    """Kernels whose derivatives can be differentiated: the fused ones have no forward mode, and a backward for values alone."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(exact(module))
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")  # said whenever its flags are set
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.")  # torch itself calls it before its first forward mode
        if any(isinstance(m, nn.RNNBase) for m in module.modules()):
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # detached parameters would open it
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        yield
