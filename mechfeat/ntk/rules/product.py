"""The one mechanism behind products and sums with a parameter: which axes it shares with the activation and with the output.

Axes carry labels, as in an einsum. Of an output ``y[out] = Σ x[xs] W[w]`` the gradient of W is ``Σ g[out] x[xs]``, summed over the
labels that W lacks, but for the sample's. Labels of W that the output alone has are the rows of an outer product, those that the
activation alone has its columns; where both have one, or there is no activation, the gradient itself is formed.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from mechfeat.ntk.factors import Dense, Outer
from mechfeat.ntk.rules.registry import Call, Unfit, Use

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def product(
    call: Call, W: Tensor, w: str, out: str, x: Callable[[], Tensor] | None = None, xs: str = "", bias_of: Tensor | None = None
) -> Use:
    """The use of a parameter that is multiplied or added.

    Args:
        call: The call.
        W: The parameter.
        w: A label for each of its axes; ``"1"`` for one that is broadcast.
        out: Labels of the call's output.
        x: What it is multiplied by, once asked for; nothing for a sum.
        xs: Labels of ``x``.
        bias_of: As for :class:`~mechfeat.ntk.rules.Use`.

    Returns:
        The use.

    Raises:
        Unfit: No axis of the output has one entry a sample, or an axis of the parameter is summed by itself.
    """
    held = w.replace("1", "")
    if any(len(set(labels)) < len(labels) for labels in (held, out, xs)) or not set(held) <= set(out + xs):
        raise Unfit("an axis is repeated, or summed by itself")
    sample, flattened = _sample(call, out, held)
    more, name = [s for s in LETTERS if s not in out + xs][:2]  # positions that share an axis with the samples; outputs of the model

    def unflattened(t: Tensor, labels: str) -> tuple[Tensor, str]:
        if not flattened or sample not in labels:
            return t, labels
        return t.unflatten(labels.index(sample), (call.n, -1)), labels.replace(sample, sample + more)

    @cache
    def activation() -> tuple[Tensor, str]:
        assert x is not None
        value, lone = x().detach(), [i for i, s in enumerate(xs) if s not in out + held]
        return unflattened(value.sum(lone) if lone else value, "".join(s for s in xs if s in out + held))

    rows, columns = ([s for s in held if s not in other] for other in (xs, out))

    def outer(g: Tensor) -> Outer:
        (g, gs), (X, Xs) = unflattened(g, name + out), activation()
        positions = [s for s in gs if s not in (sample, name, *rows)]
        left = _arranged(g, gs, [sample], [name], positions, rows)
        return Outer(left, _arranged(X, Xs, [sample], positions, columns))

    def formed(g: Tensor) -> Dense:
        g, gs = unflattened(g, name + out)
        if x is not None:
            X, Xs = activation()
            if columns:
                return Dense(torch.einsum(f"{gs},{Xs}->{sample}{name}{held}", g, X).reshape(call.n, len(g), *W.shape))
            X = X.permute([Xs.index(s) for s in gs if s in Xs])
            g = g * X[tuple(slice(None) if s in Xs else None for s in gs)]
        summed = [i for i, s in enumerate(gs) if s not in (sample, name, *held)]
        g, gs = g.sum(summed) if summed else g, "".join(s for i, s in enumerate(gs) if i not in summed)
        return Dense(g.permute([gs.index(s) for s in (sample, name, *held)]).reshape(call.n, g.shape[gs.index(name)], *W.shape))

    if x is None or len(rows) + len(columns) < len(held) or not set(out) - set(rows) <= set(xs):
        return Use(W, formed, bias_of, small=W.numel() * call.n <= call.out.numel())
    ones = [i for i, s in enumerate(w) if s == "1"]
    return Use(W, outer, bias_of, order=(*(w.index(s) for s in rows + columns), *ones))


def fitting(*uses: Callable[[], Use]) -> list[Use]:
    """The uses that a call allows: of two parameters that meet, one may fit.

    Args:
        *uses: How to get each.

    Returns:
        Those that fit.

    Raises:
        Unfit: None does.
    """
    found, reasons = [], []
    for use in uses:
        try:
            found.append(use())
        except Unfit as reason:
            reasons.append(reason)
    if reasons and not found:
        raise reasons[0]
    return found


def aligned(shape: Sequence[int], out: Sequence[int]) -> str:
    """Labels of an operand that is broadcast to an output with labels ``abc…``: its last axes are the output's.

    Args:
        shape: Shape of the operand.
        out: Shape of the output.

    Returns:
        A label for each axis; ``"1"`` for one of size 1.
    """
    first = len(out) - len(shape)
    return "".join("1" if size == 1 else LETTERS[first + i] for i, size in enumerate(shape))


def squeezed(x: Tensor, labels: str) -> tuple[Callable[[], Tensor], str]:
    """An activation without its broadcast axes.

    Args:
        x: The activation.
        labels: Its labels, ``"1"`` for an axis that is broadcast.

    Returns:
        How to get it, and its labels.
    """
    x = x.detach()
    return lambda: x[tuple(0 if s == "1" else slice(None) for s in labels)], labels.replace("1", "")


def shift(call: Call, b: Tensor, bias_of: Tensor | None = None) -> Use:
    """The use of a parameter that is added to the output.

    Args:
        call: The call.
        b: The parameter.
        bias_of: As for :class:`~mechfeat.ntk.rules.Use`.

    Returns:
        The use.
    """
    out = tuple(call.out.shape)
    return product(call, b, aligned(b.shape, out), LETTERS[: len(out)], bias_of=bias_of)


def _sample(call: Call, out: str, held: str) -> tuple[str, bool]:
    """Which label of the output is the samples', and whether positions share its axis, samples outermost."""
    free = {s: size for s, size in zip(out, call.out.shape) if s not in held}
    fitting = [s for s, size in free.items() if size == call.n]
    if fitting and (fitting[0] == out[0] or len(fitting) == 1):
        return fitting[0], False
    if out[:1] in free and out and call.out.shape[0] % call.n == 0:
        return out[0], True
    raise Unfit(f"its output of shape {tuple(call.out.shape)} has no axis of {call.n} samples")


def _arranged(t: Tensor, labels: str, *groups: list[str]) -> Tensor:
    """A tensor with one axis for each group of labels."""
    t = t.permute([labels.index(s) for group in groups for s in group])
    sizes, shape = list(t.shape), []
    for group in groups:
        shape.append(torch.Size(sizes[: len(group)]).numel())
        del sizes[: len(group)]
    return t.reshape(shape)
