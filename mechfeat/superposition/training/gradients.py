r"""Gradients of every instance at once: written out for most models, by autograd for the rest.

With :math:`G = \partial L / \partial z` at the outputs' pre-activations :math:`z = s\,H U^\top + b + c`, the gradients are
:math:`s\,G^\top H` for :math:`U`, the column sums of :math:`G` for :math:`b`, and :math:`X^\top (s\,G U \odot \sigma_h')` for :math:`W`.
On one-hot inputs :math:`X` is the identity and drops out: what is left are two or three small products, in buffers that are allocated
once and stay in the cache.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mechfeat.models import ToySpec
from mechfeat.models.bank import outputs
from mechfeat.superposition.training.losses import Loss

_aten = torch.ops.aten


@dataclass(frozen=True)
class Batch:
    """Inputs of one step.

    Attributes:
        x: ``[1 or instance, sample, feature]``; None for the identity matrix.
        y: Targets, likewise; None for the identity matrix.
        weight: ``[1 or instance, sample, 1]`` weights that sum to 1; a number where all are equal.
    """

    x: Tensor | None
    y: Tensor | None
    weight: Tensor | float


def is_closed(spec: ToySpec) -> bool:
    """Whether gradients of a model are written out here.

    Args:
        spec: The model.

    Returns:
        False for unit rows, residual MLPs and activations of the user's own.
    """
    named = isinstance(spec.activation, str) and (spec.hidden_activation is None or isinstance(spec.hidden_activation, str))
    return named and not spec.unit_norm and not spec.d_mlp


class Gradients:
    """Gradients of a chunk of instances.

    Args:
        spec: The model.
        loss: The loss.
        importance: ``[1 or instance, 1, output]``, or None for 1.
        closed: Written out; otherwise by autograd.
    """

    def __init__(self, spec: ToySpec, loss: Loss, importance: Tensor | None, *, closed: bool) -> None:
        self.spec, self.loss, self.importance, self.closed = spec, loss, importance, closed
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, values: dict[str, Tensor], batch: Batch, *, losses: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """Gradients of the summed losses, so that each instance has its own.

        Args:
            values: Parameters by name.
            batch: The inputs.
            losses: Whether losses are wanted too.

        Returns:
            Gradients by name, in buffers that the next call overwrites, and losses ``[instance]``.
        """
        return self._written(values, batch, losses) if self.closed else self._autograd(values, batch)

    def losses(self, values: dict[str, Tensor], batch: Batch) -> Tensor:
        """Losses alone.

        Args:
            values: Parameters by name.
            batch: The inputs.

        Returns:
            ``[instance]``.
        """
        eye = torch.eye(self.spec.n_features, dtype=values["W"].dtype, device=values["W"].device) if None in (batch.x, batch.y) else None
        out = outputs(self.spec, values, eye if batch.x is None else batch.x)  # type: ignore[arg-type]
        return self.loss.value(out, eye if batch.y is None else batch.y, self._weight(batch))  # type: ignore[arg-type]

    def _weight(self, batch: Batch) -> Tensor | float:
        weight = batch.weight if self.loss.kind == "cross_entropy" else batch.weight / self.spec.outputs
        return weight if self.importance is None else self.importance * weight

    def _autograd(self, values: dict[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        with torch.enable_grad():
            leaves = {name: p.detach().requires_grad_() for name, p in values.items()}
            found = self.losses(leaves, batch)
            gradients = torch.autograd.grad(found.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, gradients)), found.detach()

    def _buffer(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        have = self.buffers.get(name)
        if have is None or have.shape != shape:
            have = self.buffers[name] = like.new_empty(shape)
        return have

    def _written(self, values: dict[str, Tensor], batch: Batch, losses: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        spec, x, W = self.spec, batch.x, values["W"]
        U = W if spec.tied else values["U"]
        n, f, h = W.shape
        s = f if x is None else x.shape[-2]
        if x is None:
            hidden = pre_hidden = W
        else:
            hidden = pre_hidden = torch.bmm(x.expand(n, -1, -1), W, out=self._buffer("hidden", (n, s, h), W))
        if spec.hidden_bias:
            pre_hidden = torch.add(hidden, values["b_hidden"][:, None], out=self._buffer("pre_hidden", (n, s, h), W))
            hidden = pre_hidden
        if spec.hidden_activation not in (None, "identity"):
            hidden = _activate(spec.hidden_activation, pre_hidden, self._buffer("active", (n, s, h), W))
        pre, out = self._buffer("pre", (n, s, spec.outputs), W), self._buffer("out", (n, s, spec.outputs), W)
        if spec.out_bias:
            bias = values["b"][:, None]
            torch.baddbmm(bias + spec.shift if spec.shift else bias, hidden, U.mT, alpha=spec.scale, out=pre)
        else:
            torch.bmm(hidden, U.mT, out=pre)
            if spec.scale != 1:
                pre.mul_(spec.scale)
            if spec.shift:
                pre.add_(spec.shift)
        out = _activate(spec.activation, pre, out)
        found = self._losses_of(out, batch) if losses else None
        G = self.loss.residual_(out, batch.y)
        factor = self.loss.factor
        weight = self._weight(batch)
        if isinstance(weight, Tensor):
            G.mul_(weight)
        else:
            factor *= weight
        _slope_(spec.activation, G, pre)

        gradients: dict[str, Tensor] = {}
        if spec.out_bias:
            gradients["b"] = torch.sum(G, 1, out=self._buffer("b", (n, spec.outputs), W)).mul_(factor)
        scaled = factor * spec.scale
        if self._symmetric(batch, hidden is W):
            gradients["W"] = torch.baddbmm(W, G, W, beta=0, alpha=2 * scaled, out=self._buffer("W", (n, f, h), W))
            return gradients, found
        dU = torch.baddbmm(U, G.mT, hidden, beta=0, alpha=scaled, out=self._buffer("U", (n, spec.outputs, h), W))
        if not spec.tied:
            gradients["U"] = dU
        dH = torch.baddbmm(hidden, G, U, beta=0, alpha=scaled, out=self._buffer("dH", (n, s, h), W))
        if spec.hidden_activation not in (None, "identity"):
            _slope_(spec.hidden_activation, dH, pre_hidden)
        if spec.hidden_bias:
            gradients["b_hidden"] = torch.sum(dH, 1, out=self._buffer("b_hidden", (n, h), W))
        if x is None:
            gradients["W"] = dU.add_(dH) if spec.tied else dH
        elif spec.tied:
            gradients["W"] = dU.baddbmm_(x.expand(n, -1, -1).mT, dH)
        else:
            gradients["W"] = torch.bmm(x.expand(n, -1, -1).mT, dH, out=self._buffer("W", (n, f, h), W))
        return gradients, found

    def _symmetric(self, batch: Batch, linear: bool) -> bool:
        """Whether G is symmetric: tied, one-hot, and nothing that treats rows and columns differently."""
        plain = self.spec.tied and not self.spec.out_bias and not self.spec.hidden_bias and linear
        return plain and batch.x is None and batch.y is None and isinstance(self._weight(batch), float) and self.loss.kind == "lp"

    def _losses_of(self, out: Tensor, batch: Batch) -> Tensor:
        y = torch.eye(self.spec.n_features, dtype=out.dtype, device=out.device) if batch.y is None else batch.y
        return self.loss.value(out, y, self._weight(batch))


def _activate(name: object, pre: Tensor, out: Tensor) -> Tensor:
    if name == "relu":
        return torch.clamp_min(pre, 0, out=out)
    if name == "gelu":
        return _aten.gelu.out(pre, out=out) if pre.device.type == "cpu" else out.copy_(F.gelu(pre))
    return out.copy_(pre)


def _slope_(name: object, gradient: Tensor, pre: Tensor) -> Tensor:
    """Multiply a gradient by the slope of an activation, in place."""
    if name == "relu":
        return _aten.threshold_backward.grad_input(gradient, pre, 0, grad_input=gradient)
    if name == "gelu":
        return _aten.gelu_backward.grad_input(gradient, pre, grad_input=gradient)
    return gradient
