r"""The completeness proof: each parameter's part of the finished kernel against an independent gradient.

For cotangents v over samples and outputs,

.. math:: v^\top Θ_θ v = \| ∇_θ \langle v, f \rangle \|^2,

and for two batches the bilinear form of v₁ and v₂. The right side is one ordinary backward pass with weight gradients,
which knows nothing of captures and rules; lost uses, lost cross terms, wrong orientations and mixed samples all break the
equality. Four samples, the first and the last among them, are checked for each parameter, and the total once on all.

A trace has no such form for any v, but for cotangents that are the same for every output: it is a sum over outputs, or over the rows of an
orthonormal basis of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import NondeterministicModelError, SampleInteractionError
from mechfeat.ntk.capture import trainable


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """Largest gap that counts as rounding: relative to a parameter's own part, and to the sum over parameters.

    A small parameter's part is a difference of large numbers, hence the second. The tests break
    rules in many ways, all of which exceed these, and draw cotangents for right rules, none of which do.

    Args:
        dtype: Dtype of the model.

    Returns:
        The two tolerances.
    """
    if dtype == torch.float64:
        return 1e-9, 1e-13
    if dtype == torch.float32:
        return 1e-4, 2e-6
    return 5e-2, 1e-3  # half precision: gradients themselves carry three digits


def proof_samples(n: int, generator: torch.Generator) -> list[int]:
    """Up to four samples, the first and the last among them.

    Args:
        n: Number of samples.
        generator: Draws those between.

    Returns:
        Sorted indices.
    """
    if n <= 4:
        return list(range(n))
    middle = 1 + torch.randperm(n - 2, generator=generator, device="cpu")[:2]
    return sorted([0, n - 1, *middle.tolist()])


@dataclass(frozen=True)
class Side:
    """One batch of the proof.

    Attributes:
        v: Cotangents, zero outside the proof samples.
        gradients: Parameter name → ∇_θ⟨v, f⟩; missing where f does not depend on it.
    """

    v: Float[Tensor, "n o"]
    gradients: Mapping[str, Tensor]


def cotangent(n: int, o: int, like: Tensor, generator: torch.Generator) -> Float[Tensor, "n o"]:
    """A random cotangent.

    Args:
        n: Samples.
        o: Outputs.
        like: Gives dtype and device.
        generator: Source of randomness, on the CPU.

    Returns:
        Standard normal entries.
    """
    return torch.randn(n, o, generator=generator, dtype=torch.float64, device="cpu").to(like)


def reference(module: nn.Module, x: Tensor, v: Float[Tensor, "n o"], *, expect: Float[Tensor, "n o"]) -> Side:
    """One plain forward and backward with weight gradients.

    Args:
        module: The model.
        x: The proof samples alone, or the whole batch.
        v: Cotangents.
        expect: Outputs that the captured run gave for these samples.

    Returns:
        Cotangents and gradients.

    Those of :func:`compare` are raised.
    """
    parameters = trainable(module)
    with torch.enable_grad():
        y = module(x.clone()).reshape(len(x), -1)
        compare(module, x, y.detach(), expect)
        found = torch.autograd.grad(y, list(parameters.values()), v, allow_unused=True) if y.requires_grad else [None] * len(parameters)
    return Side(v, {name: g.to_dense() if g.is_sparse else g for name, g in zip(parameters, found) if g is not None})


def alone(module: nn.Module, x: Tensor, expect: Float[Tensor, "n o"]) -> None:
    """Run the first and the last sample of a batch by themselves: they are among the proof samples, which may be all there are, so leaving
    out the others does not show what depends on them.

    Args:
        module: The model.
        x: The batch.
        expect: Outputs that the captured run gave for it.
    """
    for part in (slice(0, 1), slice(len(x) - 1, len(x))):
        try:
            with torch.no_grad():
                y = module(x[part].clone()).reshape(1, -1)
        except Exception:
            return  # the model fixes its batch size
        if y.shape != expect[part].shape:
            return
        compare(module, x[part], y, expect[part])


def compare(module: nn.Module, x: Tensor, y: Float[Tensor, "n o"], expect: Float[Tensor, "n o"]) -> None:
    """Compare outputs of some samples by themselves with those among the others.

    Args:
        module: The model.
        x: The samples.
        y: Their outputs by themselves.
        expect: Their outputs among the others.

    Raises:
        NondeterministicModelError: They differ, and so do two evaluations on these samples.
        SampleInteractionError: They differ for another reason.
    """
    same = y.shape == expect.shape
    gap, scale = (float((y - expect).abs().max()) if same else float("inf")), float(expect.abs().max())
    if gap <= (1e-9 if y.dtype == torch.float64 else 1e-4 if y.dtype == torch.float32 else 0.1) * max(scale, torch.finfo(y.dtype).tiny):
        return
    with torch.no_grad():
        again = module(x.clone()).reshape(len(x), -1)
    if not torch.equal(again, y):
        raise NondeterministicModelError(
            f"Two evaluations of the model on the same input differ by {float((again - y).abs().max()):.2e}. A kernel needs "
            "a deterministic model: call model.eval(), and fix any random draws in its forward."
        )
    raise SampleInteractionError(
        f"The outputs for {len(x)} of the samples change by {gap:.2e} when the others are left out of the batch, so samples interact and a "
        "per-sample kernel is not defined. Batch statistics or attention over the batch axis do this; use model.eval() or remove it."
    )


def row_by_row(
    module: nn.Module, x: Tensor, v: Float[Tensor, " n"], rows: Float[Tensor, "l o"], *, expect: Float[Tensor, "n o"]
) -> Iterator[Side]:
    """One plain forward, and a backward with weight gradients for each of some combinations of the outputs.

    Args:
        module: The model.
        x: The proof samples alone, or the whole batch.
        v: Cotangents, the same for every combination.
        rows: The combinations.
        expect: Outputs that the captured run gave for these samples.

    Yields:
        Cotangents and gradients of ``⟨v, f row⟩``.
    """
    parameters = trainable(module)
    with torch.enable_grad():
        y = module(x.clone()).reshape(len(x), -1)
    compare(module, x, y.detach(), expect)
    for row in rows:
        u = v[:, None] * row
        found = torch.autograd.grad(y, list(parameters.values()), u, retain_graph=True, allow_unused=True)
        yield Side(u, {name: g.to_dense() if g.is_sparse else g for name, g in zip(parameters, found) if g is not None})


def forms(kernel: Float[Tensor, "..."], side1: Side, side2: Side) -> float:
    """The bilinear form of a kernel.

    Args:
        kernel: On the proof samples, ``[n o m p]``; or ``[n m]`` for cotangents ``[n 1]``.
        side1: First batch.
        side2: Second batch.

    Returns:
        ``v₁ᵀ Θ v₂``, in float64.
    """
    v1, v2 = side1.v.double().flatten(), side2.v.double().flatten()
    return float(v1 @ kernel.double().reshape(len(v1), len(v2)) @ v2)


@dataclass(frozen=True)
class Wanted:
    """What the forms of the parameters' parts have to come to, parameter by parameter.

    Attributes:
        values: Independent values of the forms; missing means zero.
        sizes: Products of norms that their rounding is measured by.
    """

    values: Mapping[str, float]
    sizes: Mapping[str, float]


def wanted(pairs: Iterable[tuple[float, Side, Side]]) -> Wanted:
    """Independent values of the forms of all parameters' parts.

    Args:
        pairs: Both sides, and how often they count; several pairs are summed, one held at a time.

    Returns:
        The values.
    """
    values: dict[str, float] = {}
    squares: dict[str, tuple[float, float]] = {}
    for weight, side1, side2 in pairs:
        for n in side1.gradients:
            if n in side2.gradients:
                a, b = side1.gradients[n], side2.gradients[n]
                values[n] = values.get(n, 0.0) + weight * _dot(a, b)
                left, right = squares.get(n, (0.0, 0.0))
                squares[n] = left + weight * _dot(a, a), right + weight * _dot(b, b)
    return Wanted(values, {n: (left * right) ** 0.5 for n, (left, right) in squares.items()})


def gaps(have: Mapping[str, float], want: Wanted, dtype: torch.dtype, folded: Mapping[str, str]) -> tuple[dict[str, float], list[str]]:
    """Check each parameter's part.

    Args:
        have: Parameter name → bilinear form of its part of the kernel on the proof samples; missing means zero.
        want: Independent values.
        dtype: Dtype of the model, which sets the tolerance.
        folded: Bias → weight, where one part is that of both; they hold or fail together.

    Returns:
        Relative gap of each parameter, and the names of those beyond rounding.
    """
    total = sum(want.sizes.values())
    relative, absolute = tolerances(dtype)
    found: dict[str, float] = {}
    failed: list[str] = []
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys([*have, *want.values]):
        groups.setdefault(folded.get(name, name), []).append(name)
    for names in groups.values():
        scale = sum(want.sizes.get(n, 0.0) for n in names)
        gap = abs(sum(have.get(n, 0.0) for n in names) - sum(want.values.get(n, 0.0) for n in names))
        found |= dict.fromkeys(names, gap / scale if scale else (0.0 if gap <= absolute * total else float("inf")))
        if not gap <= relative * scale + absolute * total:  # NaN fails
            failed += names
    return found, failed


def _dot(a: Tensor, b: Tensor) -> float:
    # In float64, without copies of whole gradients.
    parts = zip(a.reshape(-1).split(1 << 16), b.reshape(-1).split(1 << 16))
    return sum((float(torch.dot(p.double(), q.double())) for p, q in parts), 0.0)
