"""The end of a language model: the final norm and the unembedding, which turn the residual stream into logits.

The unembedding is linear and the norm almost: with its scale held at the value it had, it is linear too, and a sum that the stream is made
of becomes a sum that the logit is made of. Which norm it is, is read from its parameters and proved on what it returned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechfeat.errors import CircuitError, HookNameError, ModelOutputError, OptionError, ShapeError, UnsupportedLayerError
from mechfeat.hooks import HookedModel, HookName

NormKind = Literal["LayerNorm", "RMSNorm", "none"]


@dataclass(frozen=True)
class FixedNorm:
    """A norm whose scale is held: ``y = (x - mean x) · scale · weight + bias``, without the mean for an RMSNorm.

    Attributes:
        kind: Which norm.
        scale: One over the standard deviation, or over the root mean square, of each row it normed.
        weight: Gain of each channel.
        bias: What it adds.
    """

    kind: NormKind
    scale: Float[Tensor, " sample"]
    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None

    def linear(self, part: Float[Tensor, "*part sample d_model"]) -> Float[Tensor, "*part sample d_model"]:
        """What a summand of the stream becomes, without the bias.

        Args:
            part: Summands, for the rows whose scale is held.

        Returns:
            Their images; those of all summands and the bias add up to what the norm returned.
        """
        centred = part - part.mean(-1, keepdim=True) if self.kind == "LayerNorm" else part
        return centred * self.scale[:, None] * self.weight


class Readout:
    """The final norm and the unembedding of a model.

    Args:
        hm: The model.
        norm: Hook name of the final norm, or a role; None where the unembedding reads the stream itself.
        unembed: Hook name of the unembedding, or a role.

    Attributes:
        norm: Hook name of the final norm, None where there is none.
        unembed: Hook name of the unembedding.
        norm_path: Module path of the norm, None where there is none.
        unembed_path: Module path of the unembedding.
        stream: Hook name of the residual stream that is read.

    Raises:
        CircuitError: The model says of no module, or of several, that it plays the role.
        HookNameError: A name is that of no module.
        UnsupportedLayerError: The unembedding is no linear layer.
    """

    def __init__(self, hm: HookedModel, norm: str | None, unembed: str) -> None:
        modules = dict(hm.module.named_modules())
        self.norm = None if norm is None else _only(hm, norm, "norm")
        self.unembed = _only(hm, unembed, "unembed")
        self._outer = None if self.norm is None else _module(modules, self.norm, hm)
        head_path, head = _module(modules, self.unembed, hm)
        inner = _unwrapped(head)
        weight = getattr(inner, "weight", None)
        if not isinstance(inner, nn.Linear) or not isinstance(weight, Tensor):
            raise UnsupportedLayerError(
                f"{self.unembed!r} is a {type(inner).__name__}, and an unembedding is read from an nn.Linear. Name it with unembed=..."
            )
        self.W_U: Tensor = weight.detach()  # [vocab d_model], as nn.Linear keeps it
        self.b_U: Tensor | None = None if inner.bias is None else inner.bias.detach()
        self.norm_path = None if self._outer is None else self._outer[0]
        self.unembed_path = head_path
        self.stream = f"{self._outer[0] if self._outer is not None else head_path}:in"
        self._read = f"{head_path}:in"

    @property
    def points(self) -> list[str]:
        """What a run has to record: the stream, and what the unembedding reads."""
        return list(dict.fromkeys((self.stream, self._read)))

    def read(self, cache: Mapping[str, Tensor]) -> Tensor:
        """What the unembedding read.

        Args:
            cache: A run that recorded ``points``.

        Returns:
            The normed stream.
        """
        return cache[self._read]

    def logits(self, resid: Float[Tensor, "*place d_model"], tokens: Sequence[int] | None = None) -> Float[Tensor, "*place vocab"]:
        """The model's own norm and unembedding, applied to a residual stream.

        Args:
            resid: The stream, at any point of the network.
            tokens: Entries of the vocabulary; all by default.

        Returns:
            Logits.
        """
        normed = resid if self._outer is None else self._outer[1](resid)
        W, b = (self.W_U, self.b_U) if tokens is None else (self.W_U[list(tokens)], None if self.b_U is None else self.b_U[list(tokens)])
        return F.linear(normed.to(W.dtype), W, b)

    def fixed(self, stream: Float[Tensor, "sample d_model"], read: Float[Tensor, "sample d_model"]) -> FixedNorm:
        """The norm with its scale held at what it was on these rows.

        Args:
            stream: What it read.
            read: What it returned.

        Returns:
            The norm as a linear map.

        Raises:
            CircuitError: What it returned is neither that of a LayerNorm nor that of an RMSNorm with its parameters.
        """
        ones = torch.ones_like(stream[0])
        if self._outer is None:
            return FixedNorm("none", torch.ones_like(stream[:, 0]), ones, None)
        m = _unwrapped(self._outer[1])
        found, bias = getattr(m, "weight", None), getattr(m, "bias", None)
        weight = ones if found is None else found.detach().to(stream)
        bias = None if bias is None else bias.detach().to(stream)
        eps = next((float(v) for v in (getattr(m, a, None) for a in ("eps", "variance_epsilon")) if v is not None), 0.0)
        kinds: list[NormKind] = ["LayerNorm", "RMSNorm"]
        if "rms" in type(m).__name__.lower():  # on a stream whose mean is 0 both would fit
            kinds.reverse()
        tolerance = max(1e-4, 4 * torch.finfo(read.dtype).eps) * float(read.abs().amax())
        for kind in kinds:
            centred = stream - stream.mean(-1, keepdim=True) if kind == "LayerNorm" else stream
            scale = (centred.square().mean(-1) + eps).rsqrt()
            for gain in (weight, weight + 1):  # Gemma keeps the gain less one
                norm = FixedNorm(kind, scale, gain, bias)
                gap = norm.linear(stream) + (0.0 if bias is None else bias) - read
                if float(gap.abs().amax()) <= tolerance:
                    return norm
        raise CircuitError(
            f"{self.norm!r} is a {type(m).__name__}, and what it returned is neither that of a LayerNorm nor that of an RMSNorm with its"
            " weight, bias and eps, so its scale cannot be held. Name the last norm before the unembedding with norm=..., or norm=None"
            " where there is none."
        )


def model_logits(out: Any) -> Float[Tensor, "sample pos vocab"]:
    """Logits of a language model.

    Args:
        out: What the model returned: a tensor, an object or mapping with ``logits``, or a tuple that begins with them.

    Returns:
        The logits.

    Raises:
        ModelOutputError: There are none.
        ShapeError: They have other axes than sample, position and vocabulary.
    """
    found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if found is None and isinstance(out, Mapping):
        found = out.get("logits")
    if found is None and isinstance(out, tuple) and out:
        found = out[0]
    if not isinstance(found, Tensor):
        raise ModelOutputError(
            f"The model returned a {type(out).__name__} without logits. It must return a tensor of logits, something with `logits`, or a"
            " tuple that begins with them."
        )
    if found.ndim != 3:
        raise ShapeError(f"The model's logits have shape {tuple(found.shape)}. A language model gives [sample pos vocab].")
    return found.detach()


def token_ids(option: str, tokens: int | Sequence[int] | Int[Tensor, "..."], n: int, d_vocab: int, device: Any) -> Int[Tensor, " sample"]:
    """One token for each input.

    Args:
        option: What the argument is called.
        tokens: One for all, or one for each.
        n: Number of inputs.
        d_vocab: Size of the vocabulary.
        device: Where they go.

    Returns:
        Their indices.

    Raises:
        ShapeError: There are neither one nor ``n``.
        OptionError: One is not in the vocabulary.
    """
    ids = torch.as_tensor(tokens, dtype=torch.long, device=device)
    if ids.ndim == 0:
        ids = ids.expand(n)
    if ids.shape != (n,):
        raise ShapeError(
            f"{option} has shape {tuple(ids.shape)}, and there are {n} inputs. Give one token for all of them, or one for each."
        )
    if n and not bool(((ids >= 0) & (ids < d_vocab)).all()):
        raise OptionError(option, ids[(ids < 0) | (ids >= d_vocab)].tolist()[0], (f"a token from 0 to {d_vocab - 1}",))
    return ids


def _only(hm: HookedModel, name: str, option: str) -> str:
    if not name.startswith("@"):
        return name
    found = hm.roles().get(name[1:], ())
    if len(found) == 1:
        return found[0]
    raise CircuitError(
        f"{len(found) or 'No'} hook point{'s' if len(found) > 1 else ''} of this {type(hm.module).__name__}"
        f" play{'' if len(found) > 1 else 's'} the role {name!r}. A model that norms its stream after each block, as BERT does, has no"
        f" final norm and its stream is no sum. For another model name it: {option}={'None' if option == 'norm' else '...'}"
        f"{', or the hook name of the norm before the unembedding' if option == 'norm' else ' is the hook name of the linear layer'}."
    )


def _module(modules: Mapping[str, nn.Module], name: str, hm: HookedModel) -> tuple[str, nn.Module]:
    path = HookName.parse(name).path
    if path not in modules:
        raise HookNameError(name, hm.hook_names())
    if type(modules[path]).__name__ == "HookPoint":  # stands for the module it belongs to
        path = path.rpartition(".")[0]
    return path, modules[path]


def _unwrapped(m: nn.Module) -> nn.Module:
    inner = getattr(m, "_original_component", None)  # of a bridge
    return _unwrapped(inner) if isinstance(inner, nn.Module) else m
