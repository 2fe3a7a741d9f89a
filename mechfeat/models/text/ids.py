"""Documents as padded token ids: ``[doc position]``, tokens from 0, and -1 where a document has ended."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from mechfeat.errors import DtypeError, ShapeError

PAD = -1


def check_ids(ids: Int[Tensor, "doc position"], n_tokens: int | None) -> None:
    """Check that documents are token ids, padded by -1 at their ends only.

    Args:
        ids: Token ids. A row of -1 is an empty document.
        n_tokens: Size of the vocabulary; None for any.

    Raises:
        DtypeError: They are no tensor of integers.
        ShapeError: They are not ``[doc position]``, an id is outside the vocabulary, or padding stands before a token.

    Example:
        >>> check_ids(torch.tensor([[0, 4, -1]]), 5)
    """
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        found = str(ids.dtype) if isinstance(ids, Tensor) else type(ids).__name__
        raise DtypeError(f"ids is {found}. Documents are integer token ids, padded by -1: torch.int64 of shape [doc position].")
    if ids.ndim != 2:
        raise ShapeError(f"ids has shape {list(ids.shape)}. Documents are [doc position]; one document is ids[None].")
    if ids.numel() == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < PAD or (n_tokens is not None and high >= n_tokens):
        bad = low if low < PAD else high
        row, column = (int(i) for i in (ids == bad).nonzero()[0])
        right = f"0 to {n_tokens - 1}" if n_tokens is not None else "0 upwards"
        raise ShapeError(f"ids[{row}, {column}] is {bad}. Tokens of this vocabulary are {right}, and padding is -1.")
    real = ids >= 0
    inner = real[:, 1:] & ~real[:, :-1]
    if bool(inner.any()):
        row, column = (int(i) for i in inner.nonzero()[0])
        raise ShapeError(
            f"ids[{row}, {column}] is padding and ids[{row}, {column + 1}] is a token. Padding stands at the end of a document only;"
            " mechfeat.models.text.pad makes such rows from lists."
        )


def pad(documents: Sequence[Sequence[int]], *, length: int | None = None) -> Int[Tensor, "doc position"]:
    """Documents of different lengths as one tensor.

    Args:
        documents: Token ids of each document.
        length: Positions; by default those of the longest document.

    Returns:
        Ids, with -1 after the end of each document.

    Raises:
        ShapeError: A document is longer than ``length``.
        DtypeError: A document holds something else than integers.

    Example:
        >>> pad([[3, 1], [], [2]])
        tensor([[ 3,  1],
                [-1, -1],
                [ 2, -1]])
    """
    longest = max((len(d) for d in documents), default=0)
    length = longest if length is None else length
    if longest > length:
        raise ShapeError(f"A document has {longest} tokens, and length={length}. Cut the document, or allow more positions.")
    ids = torch.full((len(documents), length), PAD, dtype=torch.int64)
    for i, document in enumerate(documents):
        if len(document):
            tokens = torch.as_tensor(document)
            if tokens.is_floating_point() or tokens.dtype == torch.bool:
                raise DtypeError(f"Document {i} holds {tokens.dtype}. Documents are integer token ids.")
            ids[i, : len(document)] = tokens
    return ids


def is_real(ids: Int[Tensor, "doc position"]) -> Bool[Tensor, "doc position"]:
    """Where there are tokens.

    Args:
        ids: Token ids.

    Returns:
        False on padding.
    """
    return ids >= 0


def lengths(ids: Int[Tensor, "doc position"]) -> Int[Tensor, " doc"]:
    """Tokens of each document.

    Args:
        ids: Token ids.

    Returns:
        Counts, 0 for an empty document.
    """
    return (ids >= 0).sum(1)


def widened(ids: Int[Tensor, "doc position"], length: int) -> Int[Tensor, "doc longer"]:
    """The same documents with padding up to a number of positions at least.

    Args:
        ids: Token ids.
        length: Positions.

    Returns:
        Ids; the same tensor where it is long enough.
    """
    short = length - ids.shape[1]
    return F.pad(ids, (0, short), value=PAD) if short > 0 else ids
