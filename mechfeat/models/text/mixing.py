"""Mixing of positions: which weights each position of a document gives to the others."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechfeat.errors import OptionError, ShapeError
from mechfeat.models.text.ids import is_real

Mixing = Literal["none", "mean", "causal_mean", "attention", "causal_attention"]


def masked_softmax(
    scores: Float[Tensor, "doc query key"], ids: Int[Tensor, "doc position"], *, causal: bool = False
) -> Float[Tensor, "doc query key"]:
    """Softmax over the tokens of a document, and rows of zeros for padding.

    Args:
        scores: Before the softmax.
        ids: Documents.
        causal: Whether a position sees itself and earlier ones only.

    Returns:
        Weights that sum to 1 over the keys of each token; 0 from and to padding.
    """
    seen = visible(ids, causal=causal)
    # A row without keys would be NaN if filled by minus infinity, and its gradient too.
    weights = torch.softmax(scores.masked_fill(~seen, torch.finfo(scores.dtype).min), -1)
    return weights * seen.to(scores.dtype)


def visible(ids: Int[Tensor, "doc position"], *, causal: bool = False) -> Bool[Tensor, "doc query key"]:
    """Which pairs of positions are both tokens.

    Args:
        ids: Documents.
        causal: Whether only keys at or before the query count.

    Returns:
        One matrix a document.
    """
    real = is_real(ids)
    seen = real[:, :, None] & real[:, None, :]
    return seen.tril() if causal else seen


def check_mixing(mixing: object) -> None:
    """Check that a mixing is a known name or a square matrix.

    Args:
        mixing: What was asked for.

    Raises:
        OptionError: It is neither a name nor a tensor.
        ShapeError: It is a tensor, and not a square matrix.
    """
    if isinstance(mixing, Tensor):
        if mixing.ndim != 2 or mixing.shape[0] != mixing.shape[1]:
            raise ShapeError(f"mixing has shape {list(mixing.shape)}. A given mixing is a square matrix [query key].")
    elif mixing not in get_args(Mixing):
        raise OptionError("mixing", mixing, (*get_args(Mixing), "a matrix [query key]"))


def mixed(
    mixing: Mixing | Tensor, residual: int | float, scores: Float[Tensor, "doc query key"], ids: Int[Tensor, "doc position"]
) -> Float[Tensor, "doc query key"]:
    r"""The matrix :math:`A(x) = r I + α(x)` by which positions are mixed.

    Args:
        mixing: ``"none"`` for zeros beside the residual, ``"mean"`` and ``"attention"`` over all tokens of the document, the causal two
            over those up to the position; or a matrix that is cut to the length of each document.
        residual: r.
        scores: Scores of the attention; the others do not read them.
        ids: Documents.

    Returns:
        One matrix a document, zero from and to padding.

    Raises:
        ShapeError: A document is longer than the matrix given.
    """
    positions = ids.shape[1]
    if isinstance(mixing, Tensor):
        if positions > len(mixing):
            raise ShapeError(f"Documents have {positions} positions, and the mixing given has {len(mixing)}. Give a larger matrix.")
        A = mixing[:positions, :positions].to(scores) * visible(ids).to(scores.dtype)
    elif mixing == "none":
        A = torch.zeros_like(scores)
    else:
        attends = mixing in ("attention", "causal_attention")
        A = masked_softmax(scores if attends else torch.zeros_like(scores), ids, causal=mixing.startswith("causal"))
    eye = torch.eye(positions, dtype=scores.dtype, device=scores.device) * is_real(ids)[..., None].to(scores.dtype)
    return A + residual * eye
