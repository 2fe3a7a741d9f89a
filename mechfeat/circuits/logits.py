"""Direct logit attribution: a logit as the sum of what each part of the model writes to the residual stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechfeat.circuits.readout import Readout, model_logits, token_ids
from mechfeat.circuits.stream import Part, stream_parts
from mechfeat.errors import CircuitError, SelectorError
from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.hooks import HookedModel, hooked


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class LogitAttribution(Stored):
    """A logit, or the difference of two, as a sum.

    It is an identity and not an estimate, so it has no null: its evidence is ``residual``. What it leaves open is what the parts do by way
    of later ones, which patching measures.

    Attributes:
        contributions: What each part adds to the logit, in nats.
        parts: Their names: hook names, ``…:result[2]`` for a head, names of weights for biases.
        kinds: What each is: ``embed pos_embed attn head mlp part`` or ``bias``.
        logit: The model's own logit, or difference, for each input.
        residual: Largest difference between the sum of the contributions and ``logit``, as a share of the largest logit of that place.
        norm: Hook name of the final norm; None where the model has none.
        norm_kind: ``LayerNorm``, ``RMSNorm`` or ``none``.
        scale: The scale the norm is held at, one over activation units, for each input.
        unembed: Hook name of the unembedding.
        settings: The options that produced it, by name.
    """

    contributions: Float[Tensor, "part sample"]
    parts: tuple[str, ...]
    kinds: tuple[str, ...]
    logit: Float[Tensor, " sample"]
    residual: float
    norm: str | None
    norm_kind: str
    scale: Float[Tensor, " sample"]
    unembed: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accumulated(self) -> Float[Tensor, "part sample"]:
        """Sums of the contributions up to and including each part, in nats; the last is the logit."""
        return self.contributions.cumsum(0)

    def of(self, name: str) -> Float[Tensor, " sample"]:
        """What one part, or all parts of a kind, add.

        Args:
            name: A part or a kind.

        Returns:
            Its contribution to each input, in nats.

        Raises:
            SelectorError: There is none of that name.
        """
        rows = [i for i, pair in enumerate(zip(self.parts, self.kinds)) if name in pair]
        if not rows:
            raise SelectorError(
                f"{name!r} is no part of this attribution, which holds {list(self.parts)}, and no kind among {sorted(set(self.kinds))}."
            )
        return self.contributions[rows].sum(0)

    def strongest(self, k: int = 5) -> list[tuple[str, float]]:
        """The parts that add or take away most.

        Args:
            k: At most this many.

        Returns:
            Name and mean contribution over inputs, largest absolute value first.
        """
        means = self.contributions.mean(1)
        return [(self.parts[int(i)], float(means[i])) for i in means.abs().topk(min(k, len(means))).indices]


def direct_logit_attribution(
    model: nn.Module | HookedModel,
    x: Any,
    tokens: int | Sequence[int] | Int[Tensor, "..."],
    *,
    against: int | Sequence[int] | Int[Tensor, "..."] | None = None,
    pos: int | Sequence[int] | Int[Tensor, "..."] = -1,
    heads: bool = False,
    parts: Sequence[str] | None = None,
    biases: Mapping[str, Float[Tensor, " d_model"]] | None = None,
    norm: str | None = "@final_norm",
    unembed: str = "@logits",
    tolerance: float = 1e-4,
) -> LogitAttribution:
    r"""What each part of the model writes towards a logit, with the scale of the final norm held.

    .. math:: \ell_t = \sum_p \Big[(r_p - \bar r_p) \, s \odot w\Big] \cdot u_t + b \cdot u_t + b_t, \qquad \textstyle\sum_p r_p = r

    with :math:`r` the stream that the final norm reads, :math:`s` one over its standard deviation, :math:`w` and :math:`b` the norm's
    weight and bias, :math:`u_t` and :math:`b_t` the unembedding. An RMSNorm does not subtract the mean.

    Args:
        model: A language model whose parts add to one residual stream, in eval mode.
        x: Inputs, as :meth:`HookedModel.run_with_cache` takes them.
        tokens: The token whose logit is split, one for all inputs or one for each.
        against: A token whose logit is subtracted.
        pos: Place of the sequence, negative from the end; one for all inputs or one for each.
        heads: Split each attention output into its heads and its bias.
        parts: Hook names of what is added to the stream; by default embeddings, attention and MLP outputs, from the roles of the model.
            Those with a ``head`` axis are split along it.
        biases: Name → vector that is added to the stream at every place, and is no activation.
        norm: Hook name of the final norm, or None where the unembedding reads the stream itself.
        unembed: Hook name of the unembedding.
        tolerance: Largest ``residual`` that is accepted. A model in bfloat16 does not reach the default: convert it, or allow more.

    Returns:
        Contributions ``[part sample]`` in order of the network; the last rows are the biases of norm and unembedding, where they have one.

    Raises:
        CircuitError: The parts do not add up to the stream or to the model's logit, or a role is missing.
        SelectorError: A part is no residual stream, or a position does not exist.

    Cost:
        One forward pass; holds the parts at all positions.

    Source:
        Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*; the name and the held scale are those of TransformerLens.

    Example:
        >>> net = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5))
        >>> found = direct_logit_attribution(net, torch.tensor([[1, 2, 3]]), 4, parts=["0"], norm="1", unembed="2")
        >>> found.parts, found.norm_kind, torch.allclose(found.contributions.sum(0), net(torch.tensor([[1, 2, 3]]))[:, -1, 4])
        (('0', '1.b', '2.b'), 'LayerNorm', True)
    """
    hm = hooked(model)
    readout = Readout(hm, norm, unembed)
    with torch.no_grad():
        out, pieces, cache = stream_parts(hm, x, parts, heads, readout.points)
        logits = model_logits(out)
        n, n_pos, d_vocab = logits.shape
        rows, place = torch.arange(n, device=logits.device), _places(pos, n, n_pos, logits.device)
        wide = torch.promote_types(logits.dtype, torch.float32)
        stream, read = (t[rows, place].to(wide) for t in (cache[readout.stream], readout.read(cache)))
        wanted = token_ids("tokens", tokens, n, d_vocab, logits.device)
        u, own = readout.W_U[wanted].to(wide), logits[rows, place, wanted].to(wide)
        b = None if readout.b_U is None else readout.b_U[wanted].to(wide)
        if against is not None:
            other = token_ids("against", against, n, d_vocab, logits.device)
            u, own = u - readout.W_U[other].to(wide), own - logits[rows, place, other].to(wide)
            b = None if b is None or readout.b_U is None else b - readout.b_U[other].to(wide)
        pieces += [Part(name, "bias", value.expand(n, n_pos, -1)) for name, value in (biases or {}).items()]
        values = torch.stack([_at(p, rows, place, (n, n_pos, stream.shape[-1])) for p in pieces]).to(wide)
        _check_stream(values, stream, readout, [p.name for p in pieces], tolerance)
        fixed = readout.fixed(stream, read)
        contributions = [*torch.einsum("psd,sd->ps", fixed.linear(values), u)]
        names, kinds = [p.name for p in pieces], [p.kind for p in pieces]
        for owner, bias in ((readout.norm_path, None if fixed.bias is None else u @ fixed.bias), (readout.unembed_path, b)):
            if bias is not None:
                contributions.append(bias)
                names.append(f"{owner}.b")
                kinds.append("bias")
        table = torch.stack(contributions)
        size = logits[rows, place].abs().amax(-1).to(wide)
        residual = float(((table.sum(0) - own).abs() / torch.where(size > 0, size, 1.0)).amax()) if n else 0.0
    if not residual <= tolerance:
        raise CircuitError(
            f"The parts add up to the stream that {readout.norm or readout.unembed!r} reads, but the logits they give differ from the"
            f" model's by {residual:.2g} of the largest, and {tolerance:.2g} is allowed. Something follows the unembedding, such as"
            f" soft-capping or a scale, or {logits.dtype} rounds too coarsely."
        )
    return LogitAttribution(
        contributions=table,
        parts=tuple(names),
        kinds=tuple(kinds),
        logit=own,
        residual=residual,
        norm=readout.norm,
        norm_kind=fixed.kind,
        scale=fixed.scale,
        unembed=readout.unembed,
        settings={
            "method": "direct logit attribution",
            "tokens": wanted.tolist(),
            "against": None if against is None else other.tolist(),
            "pos": place.tolist(),
            "heads": heads,
            "tolerance": tolerance,
        },
    )


def _places(pos: int | Sequence[int] | Tensor, n: int, n_pos: int, device: Any) -> Int[Tensor, " sample"]:
    found = torch.as_tensor(pos, dtype=torch.long, device=device)
    found = found.expand(n) if found.ndim == 0 else found
    if found.shape != (n,) or not bool(((found >= -n_pos) & (found < n_pos)).all()):
        raise SelectorError(
            f"pos={pos!r} does not fit {n} sequences of {n_pos} positions. Give one index from {-n_pos} to {n_pos - 1} for all of them, or"
            " one for each."
        )
    return found % n_pos


def _at(part: Part, rows: Tensor, place: Tensor, shape: tuple[int, int, int]) -> Float[Tensor, "sample d_model"]:
    try:
        return part.value.expand(shape)[rows, place]
    except RuntimeError:
        raise SelectorError(
            f"{part.name!r} has shape {tuple(part.value.shape)} and is no summand of a residual stream {list(shape)}. Leave it out of"
            " parts=..."
        ) from None


def _check_stream(values: Tensor, stream: Tensor, readout: Readout, names: Sequence[str], tolerance: float) -> None:
    size = float(stream.abs().amax()) if stream.numel() else 0.0
    gap = float((values.sum(0) - stream).abs().amax()) / (size or 1.0) if stream.numel() else 0.0
    if not gap <= tolerance:
        raise CircuitError(
            f"The {len(names)} parts {list(names)} add up to a residual stream that is {gap:.2g} of its largest entry away from what"
            f" {readout.norm or readout.unembed!r} reads, and {tolerance:.2g} is allowed. Something else writes to the stream, or it is"
            " normed or scaled on the way, so the logit is not their sum. Name all that is added with parts=... and biases=..."
        )
