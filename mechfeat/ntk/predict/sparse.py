r"""Kernels that are exactly linear in a few sparse features, as matrices of documents × features.

At infinite width a bag of tokens has the kernel

.. math:: Θ(x, x') = (ρ - μ) \sum_w n_w(x)\, n_w(x') + μ\, T(x)\, T(x') ,

which is the inner product of scaled token counts and one scaled length. Training by such a kernel is training of a sparse linear model: a
step costs one product with the matrix and one with its transpose, and the documents × documents kernel is never formed.
"""

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from mechfeat.errors import DtypeError, ShapeError
from mechfeat.models.text import check_ids


@dataclass(frozen=True)
class SparseMap:
    r"""Features of documents and n-grams whose inner products are the kernel.

    Attributes:
        docs: Features of the documents, ``[doc feature]`` in CSR form, float64.
        ngrams: Those of the n-grams, in the same columns.
        bias: Index of the column that all tokens share; None where there is none.
        scale: Square root of the weight of each column in the kernel, ``[feature]``.
    """

    docs: Any
    ngrams: Any
    bias: int | None
    scale: Any


def has_sparse_map(kernel: Any) -> bool:
    """Whether a kernel is known to be linear in sparse features.

    Args:
        kernel: The kernel.

    Returns:
        True for one with a ``feature_map`` method.
    """
    return callable(getattr(kernel, "feature_map", None))


def is_bag(kernel: Any) -> bool:
    """Whether a kernel is that of a bag of tokens, which two numbers give.

    Args:
        kernel: The kernel.

    Returns:
        True for one with the numbers ``rho`` and ``mu``.
    """
    return all(isinstance(getattr(kernel, name, None), int | float) for name in ("rho", "mu"))


def sparse_map(kernel: Any, docs: Any, ngrams: Int[Tensor, "ngram position"]) -> SparseMap:
    """The sparse features of documents and n-grams.

    Args:
        kernel: One for which :func:`has_sparse_map` holds.
        docs: Documents as padded ids, or, for a bag, as a SciPy matrix of token counts ``[doc token]``.
        ngrams: N-grams as padded ids.

    Returns:
        The map, block after block in the order of the kernel's.

    Raises:
        ShapeError: Counts were given to a kernel that needs the order of tokens.
    """
    import numpy as np
    from scipy import sparse

    counted = is_counts(docs)
    if counted and not is_bag(kernel):
        raise ShapeError(f"docs are token counts, and {type(kernel).__name__} needs the order of tokens. Give padded ids [doc position].")
    n_tokens = max(docs.shape[1] if counted else top_id(docs) + 1, top_id(ngrams) + 1)
    left: list[Any] = []
    right: list[Any] = []
    scales: list[Any] = []
    bias = None
    for block in kernel.feature_map().blocks:
        grams = block.features(ngrams, n_tokens)
        if counted:
            counts = _wider(docs, n_tokens)
            rows = sparse.csr_array(np.asarray(counts.sum(1)).reshape(-1, 1)) if block.name == "length" else counts
        else:
            rows = block.features(docs, n_tokens)
        if rows.shape[1] > n_tokens:
            rows, grams = _used(rows, grams)  # of all possible bigrams few occur, and the others never learn
        if block.name == "length":
            bias = sum(part.shape[1] for part in left)
        scale = float(max(block.weight, 0.0)) ** 0.5
        left.append(rows * scale)
        right.append(grams * scale)
        scales.append(np.full(rows.shape[1], scale))
    return SparseMap(sparse.hstack(left, format="csr"), sparse.hstack(right, format="csr"), bias, np.concatenate(scales))


def is_counts(docs: Any) -> bool:
    """Whether documents are given as a SciPy matrix of counts.

    Args:
        docs: Documents.

    Returns:
        True for a sparse matrix.
    """
    return hasattr(docs, "tocsr")


def check_documents(docs: Any, what: str, n_tokens: int | None) -> int:
    """Check documents or n-grams.

    Args:
        docs: Padded ids, or a SciPy matrix of counts.
        what: What they are, for messages.
        n_tokens: Size of the vocabulary; None for any.

    Returns:
        How many there are.

    Raises:
        ShapeError: There are none, an id is outside the vocabulary, padding stands inside, or a count is negative or not finite.
        DtypeError: They are not integers.
    """
    if is_counts(docs):
        if not docs.shape[0]:
            raise ShapeError(f"{what} holds no document.")
        wrong = [v for v in (docs.max(), docs.min()) if not 0 <= v < math.inf] if docs.nnz else []
        if wrong:
            raise ShapeError(f"{what} holds the count {wrong[0]:g}. Counts of tokens are 0 or more.")
        if n_tokens is not None and docs.shape[1] > n_tokens:
            raise ShapeError(f"{what} has {docs.shape[1]} columns of counts, and the vocabulary {n_tokens} tokens.")
        return int(docs.shape[0])
    try:
        check_ids(docs, n_tokens)
    except (ShapeError, DtypeError) as error:
        raise type(error)(f"In {what}: {error}") from None
    if not len(docs):
        raise ShapeError(f"{what} has shape {list(docs.shape)}. At least one row is needed.")
    return len(docs)


def top_id(ids: Int[Tensor, "doc position"]) -> int:
    """Largest token id.

    Args:
        ids: Padded ids.

    Returns:
        It; -1 where there is no token.
    """
    return int(ids.max()) if ids.numel() else -1


def _used(rows: Any, grams: Any) -> tuple[Any, Any]:
    """Columns that documents use."""
    import numpy as np
    from scipy import sparse

    used, where = np.unique(rows.indices, return_inverse=True)
    places = np.minimum(np.searchsorted(used, grams.indices), max(len(used) - 1, 0))
    kept = used[places] == grams.indices if len(used) else np.zeros(len(places), bool)
    shape = (grams.shape[0], max(1, len(used)))
    origin = np.repeat(np.arange(grams.shape[0]), np.diff(grams.indptr))
    known = sparse.csr_array((grams.data[kept], (origin[kept], places[kept])), shape=shape)
    return sparse.csr_array((rows.data, where, rows.indptr), shape=(rows.shape[0], shape[1])), known


def _wider(counts: Any, columns: int) -> Any:
    from scipy import sparse

    found = sparse.csr_array(counts, dtype=float)
    found.resize(found.shape[0], columns)
    return found
