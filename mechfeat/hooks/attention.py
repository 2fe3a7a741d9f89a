"""Attention ports: ``q k v scores pattern z result``, values that exist only inside fused kernels.

Where a run asks for one, and only there, a function mode replaces the fused attention by explicit steps:
``scores = q kᵀ · scale + mask``, ``pattern = softmax(scores)``, ``z = pattern v``. Callers of ``scaled_dot_product_attention``
(Hugging Face models, hand-written attention) and ``nn.MultiheadAttention`` arrive there alike. Explicit and fused attention
differ by rounding; nothing of the model is changed, so the next run without a port is the fused one, bit for bit.
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mechfeat import points
from mechfeat.hooks.names import ATTENTION_PORTS
from mechfeat.hooks.registration import REGISTRATION

NOTE = "attention ran as explicit steps because one of its ports was asked for; values differ by rounding from the fused kernel"
MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)
_PROJECTIONS = ("out_proj", "c_proj", "o_proj", "dense", "proj", "to_out", "wo")


class ExplicitAttention(TorchFunctionMode):
    """Runs attention as explicit steps and shows each to the open scopes.

    Args:
        module: The model.
        scope: The run that asks for it; other threads that call the model meanwhile are left alone.
    """

    def __init__(self, module: nn.Module, scope: points.Scope) -> None:
        super().__init__()
        self._module, self._scope = module, scope
        self._stack: list[nn.Module] = []
        self._owed: dict[int, Tensor] = {}  # by identity of an output projection's weight: what edits of `result` add to its output

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The mode in force, and the module that calls attention known, until the block ends."""
        handles = []
        switched: list[tuple[Any, Any]] = []
        try:
            for m in self._module.modules():
                with REGISTRATION:
                    handles.append(m.register_forward_pre_hook(self._enter, prepend=True))
                    handles.append(m.register_forward_hook(self._leave, always_call=True))
                config: Any = getattr(m, "config", None)
                # Eager attention of Hugging Face models is written out in torch calls that a mode cannot tell from others.
                if getattr(config, "_attn_implementation", None) == "eager" and all(c is not config for c, _ in switched):
                    switched.append((config, config._attn_implementation))
                    config._attn_implementation = "sdpa"
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()
            for config, before in switched:
                config._attn_implementation = before
            self._stack.clear()
            self._owed.clear()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not points.is_active(self._scope):
            return
        if module is self._module:
            self._stack.clear()  # an interrupted pass leaves its modules behind
            self._owed.clear()
        self._stack.append(module)

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if points.is_active(self._scope) and self._stack and self._stack[-1] is module:
            self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self._stack:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward and self._stack:
            bound = MULTI_HEAD.bind(*args, **kwargs)
            bound.apply_defaults()
            return self._multi_head(**bound.arguments)
        out = func(*args, **kwargs)
        if self._owed and func in (F.linear, torch.addmm):
            weight = args[1] if func is F.linear else args[2]
            owed = self._owed.pop(id(weight), None)
            if owed is not None:
                return out + owed.reshape(out.shape)
        return out

    def _show(self, x: Tensor, port: str) -> Tensor:
        for scope in points.active():
            show = getattr(scope, "at_attention", None)
            if show is not None:
                x = show(x, port, self._stack[-1])
        return x

    def _attend(
        self,
        query: Float[Tensor, "... t d"],
        key: Float[Tensor, "... s d"],
        value: Float[Tensor, "... s e"],
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        weight: Tensor | None = None,
    ) -> Float[Tensor, "... t e"]:
        """``scaled_dot_product_attention``, step by step."""
        groups = getattr(self._stack[-1], "num_key_value_groups", 1)
        if groups > 1 and key.shape[-3] == query.shape[-3]:
            # transformers repeats grouped heads itself where there is a mask; the ports show the heads there are
            key, value, enable_gqa = key[..., ::groups, :, :], value[..., ::groups, :, :], True
        q, k, v = self._show(query, "q"), self._show(key, "k"), self._show(value, "v")
        if enable_gqa and k.shape[-3] != q.shape[-3]:
            k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
        scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        if is_causal:
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(), -torch.inf)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        scores = self._show(scores, "scores")
        pattern = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
        # A row that may look nowhere gives zero, as the fused kernel does, and not NaN.
        pattern = pattern.masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0.0)
        pattern = self._show(pattern, "pattern")
        z = self._show(F.dropout(pattern, dropout_p) @ v, "z")
        self._result(z, weight)
        return z

    def _result(self, z: Float[Tensor, "n head t d"], weight: Tensor | None) -> None:
        """Each head's part of the output, ``z W_O``; what edits change in it is added when the output projection runs."""
        wanted = any(getattr(s, "wants_result", lambda m: False)(self._stack[-1]) for s in points.active())
        if not wanted or z.ndim != 4:
            return
        W = weight if weight is not None else _output_weight(self._stack[-1])
        turned = type(_projection(self._stack[-1])).__name__ == "Conv1D"  # stored as [in out]
        if W is None or W.shape[0 if turned else 1] != z.shape[1] * z.shape[3]:
            return  # no output projection here that reads these heads
        W_O = (W if turned else W.T).unflatten(0, (z.shape[1], z.shape[3]))
        result = torch.einsum("nhtd,hdm->nthm", z, W_O)
        new = self._show(result, "result")
        if new is not result:
            self._owed[id(W)] = (new - result).sum(2)

    def _multi_head(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim_to_check: int,
        num_heads: int,
        in_proj_weight: Tensor | None,
        in_proj_bias: Tensor | None,
        bias_k: Tensor | None,
        bias_v: Tensor | None,
        add_zero_attn: bool,
        dropout_p: float,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        training: bool,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        attn_mask: Tensor | None,
        use_separate_proj_weight: bool,
        q_proj_weight: Tensor | None,
        k_proj_weight: Tensor | None,
        v_proj_weight: Tensor | None,
        static_k: Tensor | None,
        static_v: Tensor | None,
        average_attn_weights: bool,
        is_causal: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """``multi_head_attention_forward``, positions first, through :meth:`_attend`."""
        batched = query.ndim == 3
        if not batched:
            query, key, value = (t.unsqueeze(1) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight) if in_proj_weight is None else in_proj_weight.chunk(3)
        biases: Any = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
        q, k, v = (F.linear(t, w, b) for t, w, b in zip((query, key, value), weights, biases))
        n = q.shape[1]
        extra = 0
        if bias_k is not None and bias_v is not None:
            k, v, extra = torch.cat([k, bias_k.expand(1, n, -1)]), torch.cat([v, bias_v.expand(1, n, -1)]), 1
        q, k, v = (t.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))
        if add_zero_attn:
            k, v, extra = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), extra + 1
        mask = added_mask(attn_mask, key_padding_mask, n, num_heads, q, extra)
        seen: list[Tensor] = []
        z = self._attend_and_keep(q, k, v, mask, dropout_p if training else 0.0, out_proj_weight, seen)
        out = F.linear(z.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
        owed = self._owed.pop(id(out_proj_weight), None)
        if owed is not None:
            out = out + owed.transpose(0, 1)
        pattern = seen[0].mean(1) if average_attn_weights else seen[0]
        if not batched:
            out, pattern = out.squeeze(1), pattern.squeeze(0)
        return out, pattern if need_weights else None

    def _attend_and_keep(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float, weight: Tensor, seen: list[Tensor]
    ) -> Tensor:
        show = self._show

        def keeping(x: Tensor, port: str) -> Tensor:
            new = show(x, port)
            if port == "pattern":
                seen.append(new)
            return new

        self._show = keeping  # type: ignore[method-assign]
        try:
            return self._attend(q, k, v, mask, dropout_p, weight=weight)
        finally:
            del self._show


def added_mask(
    attn_mask: Tensor | None, padding: Bool[Tensor, "n s"] | Float[Tensor, "n s"] | None, n: int, heads: int, q: Tensor, extra: int
) -> Tensor | None:
    """The two masks of ``nn.MultiheadAttention`` (True or -inf hides) as one that is added to the scores."""
    parts = []
    if attn_mask is not None:
        parts.append(_float(attn_mask, q).view(n, heads, *attn_mask.shape[-2:]) if attn_mask.ndim == 3 else _float(attn_mask, q))
    if padding is not None:
        parts.append(_float(padding, q)[:, None, None, :])
    if not parts:
        return None
    total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return F.pad(total, (0, extra)) if extra else total


def _float(mask: Tensor, like: Tensor) -> Tensor:
    return (
        torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
        if mask.dtype == torch.bool
        else mask.to(like.dtype)
    )


def _projection(module: nn.Module) -> nn.Module | None:
    for name in _PROJECTIONS:
        child = getattr(module, name, None)
        if isinstance(child, nn.Module) and isinstance(getattr(child, "weight", None), Tensor):
            return child
    return None


def _output_weight(module: nn.Module) -> Tensor | None:
    child = _projection(module)
    return None if child is None else child.weight  # type: ignore[return-value]


__all__ = ["ATTENTION_PORTS", "NOTE", "ExplicitAttention"]
