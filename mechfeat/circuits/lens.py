"""Logit lens: what the model would answer if its residual stream went straight to the unembedding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.circuits.readout import Readout, model_logits
from mechfeat.errors import CircuitError, OptionError, SelectorError
from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.hooks import HookedModel, hooked


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class LogitLens(Stored):
    """Logits at every layer.

    Attributes:
        logits: One table a point, in nats up to a constant of each place.
        points: Hook names, one a layer of the table.
        tokens: Entries of the vocabulary, None for all of them.
        positions: Places of the sequence, from its beginning.
        norm: Hook name of the final norm; None where the model has none.
        unembed: Hook name of the unembedding.
        residual: Largest difference between this reading of the last residual stream and the model's own logits, as a share of the largest
            logit.
        settings: The options that produced it, by name.
    """

    logits: Float[Tensor, "layer sample pos vocab"]
    points: tuple[str, ...]
    tokens: tuple[int, ...] | None
    positions: tuple[int, ...]
    norm: str | None
    unembed: str
    residual: float
    settings: Mapping[str, Any] = field(default_factory=dict)


def logit_lens(
    model: nn.Module | HookedModel,
    x: Any,
    points: Sequence[str] | None = None,
    *,
    pos: int | Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    norm: str | None = "@final_norm",
    unembed: str = "@logits",
    tolerance: float = 1e-4,
) -> LogitLens:
    """The model's final norm and unembedding, applied to the residual stream at each layer.

    Args:
        model: A language model, in eval mode.
        x: Inputs, as :meth:`HookedModel.run_with_cache` takes them.
        points: Hook names of the stream, each one tensor ``[sample pos d_model]``. By default every state it passes through: before each
            layer, and after the last.
        pos: Places of the sequence, negative from the end; all by default.
        tokens: Entries of the vocabulary; all by default, which takes ``layers · samples · positions · d_vocab`` numbers.
        norm: Hook name of the final norm, or None where the unembedding reads the stream itself.
        unembed: Hook name of the unembedding.
        tolerance: Largest ``residual`` that is accepted.

    Returns:
        Logits ``[layer sample pos vocab]``. Those of the last residual stream were compared with the model's.

    Raises:
        CircuitError: The reading of the last residual stream is not what the model returned, or a role is missing.
        SelectorError: A point holds no residual stream, or a position does not exist.
        OptionError: A token is not in the vocabulary.

    Cost:
        One forward pass, and a norm and an unembedding a point.

    Source:
        nostalgebraist 2020, *interpreting GPT: the logit lens*.

    Example:
        >>> net = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5))
        >>> found = logit_lens(net, torch.tensor([[1, 2, 3]]), ["0"], norm="1", unembed="2")
        >>> torch.allclose(found.logits[0], net(torch.tensor([[1, 2, 3]]))), found.norm
        (True, '1')
    """
    hm = hooked(model)
    readout = Readout(hm, norm, unembed)
    d_vocab, d_model = readout.W_U.shape
    wrong = [t for t in tokens or () if not 0 <= t < d_vocab]
    if wrong:
        raise OptionError("tokens", wrong, (f"tokens from 0 to {d_vocab - 1}",))
    with torch.no_grad():
        asked = ["@resid_pre", "@resid_post"] if points is None else list(points)
        if points is None and "resid_pre" not in hm.roles():
            raise CircuitError(
                f"No hook point of this {type(hm.module).__name__} plays the role '@resid_pre'. Name the residual stream: points=[...]."
            )
        out, cache = hm.run_with_cache(x, [*asked, *readout.points])
        logits = model_logits(out)
        places = positions(pos, logits.shape[1])
        chosen = default_points(hm, cache) if points is None else asked
        bad = {p: tuple(cache[p].shape) for p in chosen if cache[p].shape != (*logits.shape[:2], d_model)}
        if bad:
            raise SelectorError(
                f"{bad} are no residual streams: the inputs have {logits.shape[0]} samples of {logits.shape[1]} positions, and the"
                f" unembedding reads {d_model} channels. Name points of that shape."
            )
        own = logits[:, places] if tokens is None else logits[:, places][..., list(tokens)]
        last = readout.logits(cache[readout.stream][:, places], tokens)
        size = float(logits[:, places].abs().amax())
        residual = float((last - own).abs().amax()) / (size or 1.0)
        if not residual <= tolerance:
            raise CircuitError(
                f"Norm {readout.norm!r} and unembedding {readout.unembed!r} on the last residual stream give logits that differ from the"
                f" model's by {residual:.2g} of the largest. Something else lies between them, such as soft-capping or a scale. The lens"
                " does not read this model."
            )
        table = torch.stack([readout.logits(cache[p][:, places], tokens) for p in chosen])
    return LogitLens(
        logits=table,
        points=tuple(chosen),
        tokens=None if tokens is None else tuple(tokens),
        positions=tuple(places),
        norm=readout.norm,
        unembed=readout.unembed,
        residual=residual,
        settings={"method": "logit lens", "tolerance": tolerance},
    )


def default_points(hm: HookedModel, cache: Mapping[str, Tensor]) -> list[str]:
    """The residual stream before each layer, and after the last.

    Args:
        hm: A model with these roles.
        cache: A run that recorded them.

    Returns:
        Names under which the cache lists them.
    """
    roles = hm.roles()
    # A block that is called with its input alone has the port "in" and no "in.0".
    return [name if name in cache else name.removesuffix(".0") for name in (*roles["resid_pre"], roles["resid_post"][-1])]


def positions(pos: int | Sequence[int] | None, n: int) -> list[int]:
    """Places of a sequence, from its beginning.

    Args:
        pos: One or several, negative from the end; None for all.
        n: Its length.

    Returns:
        Indices from 0.

    Raises:
        SelectorError: One does not exist.
    """
    chosen = list(range(n)) if pos is None else [pos] if isinstance(pos, int) else [int(p) for p in pos]
    if not chosen or any(not -n <= p < n for p in chosen):
        raise SelectorError(f"pos={pos!r} does not fit sequences of {n} positions. Give indices from {-n} to {n - 1}.")
    return [p % n for p in chosen]
