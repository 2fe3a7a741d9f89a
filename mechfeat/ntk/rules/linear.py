"""Products with a parameter: ``linear``, ``addmm``, ``matmul`` and its kin, ``einsum``."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mechfeat.ntk.rules.product import LETTERS, fitting, product, shift, squeezed
from mechfeat.ntk.rules.registry import Call, Unfit, Use, register_rule


@register_rule(F.linear)
def linear(call: Call) -> list[Use]:
    """``y = x Wᵀ + b`` with ``W [c k]``."""
    x, W, b = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    positions, row = LETTERS[: x.ndim - 1], "y" * (W.ndim - 1)
    return [
        *(_summed(call, [x, W], [positions + "k", row + "k"], positions + row) if call.owns(W) else ()),
        *(_bias(call, b, W) if call.owns(b) else ()),
    ]


@register_rule(torch.addmm, torch.Tensor.addmm)
def addmm(call: Call) -> list[Use]:
    """``y = b + x W`` with ``W [k c]``; samples and positions may share an axis (GPT-2's projections)."""
    b, x, W = call.argument(0, "input"), call.argument(1, "mat1"), call.argument(2, "mat2")
    if call.kwargs.get("beta", 1) != 1 or call.kwargs.get("alpha", 1) != 1:
        raise Unfit("alpha or beta is not 1")
    return [*(_products(call, x, W) if call.owns(x) or call.owns(W) else ()), *(_bias(call, b, W) if call.owns(b) else ())]


@register_rule(torch.matmul, torch.Tensor.matmul, torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm, torch.mv, torch.Tensor.mv)
def matmul(call: Call) -> list[Use]:
    """``y = A B``, either of which may be the parameter; leading axes are broadcast."""
    names = {"mm": ("input", "mat2"), "bmm": ("input", "mat2"), "mv": ("input", "vec")}
    first, second = names.get(call.name, ("input", "other"))
    return _products(call, call.argument(0, first), call.argument(1, second))


@register_rule(torch.einsum)
def einsum(call: Call) -> list[Use]:
    """Any einsum in which one operand is a parameter."""
    equation, *operands = call.args
    if not isinstance(equation, str):
        raise Unfit("its equation is no text")
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    inputs, out = _spelled(equation, operands, call.out.ndim)
    return _summed(call, operands, inputs, out)


def _bias(call: Call, b: Tensor, W: Tensor) -> list[Use]:
    # One that is broadcast over channels is no column of the weight.
    return fitting(lambda: shift(call, b, W if b.shape == call.out.shape[-1:] else None))


def _products(call: Call, A: Tensor, B: Tensor) -> list[Use]:
    """Both operands of a matrix product, as an einsum: ``…yk,…kz->…yz``."""
    lead = max(A.ndim, B.ndim) - 2
    a = LETTERS[lead - A.ndim + 2 : lead] + "yk" if A.ndim > 1 else "k"
    b = LETTERS[lead - B.ndim + 2 : lead] + "kz" if B.ndim > 1 else "k"
    out = LETTERS[: max(lead, 0)] + "y" * (A.ndim > 1) + "z" * (B.ndim > 1)
    return _summed(call, [A, B], [a, b], out)


def _summed(call: Call, operands: list[Tensor], inputs: list[str], out: str) -> list[Use]:
    """The parameters among the operands of an einsum; to each the others are one activation, once they are multiplied."""
    sizes: dict[str, int] = {}
    for t, labels in zip(operands, inputs):
        for s, size in zip(labels, t.shape):
            sizes[s] = max(size, sizes.get(s, 1))
    inputs = ["".join("1" if size < sizes[s] else s for s, size in zip(labels, t.shape)) for t, labels in zip(operands, inputs)]

    def use(i: int) -> Use:
        others = [squeezed(t, labels) for j, (t, labels) in enumerate(zip(operands, inputs)) if j != i]
        if len(others) == 1:
            return product(call, operands[i], inputs[i], out, *others[0])
        kept = "".join(dict.fromkeys(s for _, labels in others for s in labels if s in out + inputs[i]))
        equation = ",".join(labels for _, labels in others) + "->" + kept
        return product(call, operands[i], inputs[i], out, lambda: torch.einsum(equation, *(x() for x, _ in others)), kept)

    return fitting(*(partial(use, i) for i, t in enumerate(operands) if call.owns(t)))


def _spelled(equation: str, operands: list[Tensor], n_out: int) -> tuple[list[str], str]:
    """Labels of operands and output, with those of ``...`` spelled out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    used = set(left + right)
    fresh = [s for s in LETTERS if s not in used]
    many = max([0, *(t.ndim - len(labels) + 3 for t, labels in zip(operands, inputs) if "..." in labels)])
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = "..." * ("..." in left) + "".join(sorted(s for s in set(letters) if letters.count(s) == 1))
    inputs = [s.replace("...", "".join(fresh[many - (t.ndim - len(s) + 3) : many])) for t, s in zip(operands, inputs)]
    return inputs, right.replace("...", "".join(fresh[:many]))
