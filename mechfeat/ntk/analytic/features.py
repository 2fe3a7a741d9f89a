r"""Kernels that are inner products of few features, exactly: a document's kernel is a linear model of its counts.

Where :math:`Θ(x, x') = \sum_b w_b \langle Φ_b(x), Φ_b(x') \rangle` with sparse Φ, no matrix of documents by documents is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.models.text.ids import lengths
from mechfeat.ntk.analytic.base import AnalyticKernel

Sparse = Any  # scipy.sparse.csr_array, which is imported on first use


@dataclass(frozen=True)
class FeatureBlock:
    """Features of one kind, that share a weight in the kernel.

    Attributes:
        name: ``tokens``, ``length``, ``attention`` or ``bigrams``. Columns are tokens, one column, tokens, and for the bigram ab
            the column ``V·a + b``.
        weight: Their weight in the kernel.
        features: From documents and the size V of the vocabulary to a SciPy CSR array ``[doc feature]`` of float64.
    """

    name: str
    weight: float
    features: Callable[[Tensor, int], Sparse]


@dataclass(frozen=True)
class FeatureMap:
    """All features of a kernel.

    Attributes:
        blocks: The kinds of features, each with its weight.
    """

    blocks: tuple[FeatureBlock, ...]

    def kernel(self, x1: Int[Tensor, "n1 position1"], x2: Int[Tensor, "n2 position2"]) -> Float[Tensor, "n1 n2"]:
        """The kernel of documents, from their features.

        Args:
            x1: Documents, padded by -1.
            x2: Other documents.

        Returns:
            float64.
        """
        V = 1 + max((int(x.max()) for x in (x1, x2) if x.numel()), default=0)
        theta = torch.zeros(len(x1), len(x2), dtype=torch.float64, device=x1.device)
        for block in self.blocks:
            if block.weight:
                theta += block.weight * torch.from_numpy(gram(block.features(x1, V), block.features(x2, V))).to(theta)
        return theta


@dataclass(frozen=True, kw_only=True)
class FeatureKernel(AnalyticKernel):
    """A kernel with an exact, finite, sparse feature map."""

    def feature_map(self) -> FeatureMap:
        """The features whose inner product the kernel is.

        Returns:
            Kinds of features, with their weights.
        """
        raise NotImplementedError

    def _block(self, x1: Int[Tensor, "n1 position1"], x2: Int[Tensor, "n2 position2"]) -> Float[Tensor, "n1 n2"]:
        return self.feature_map().kernel(x1, x2)

    def _cells(self, T1: int, T2: int) -> int:
        return 4  # sparse products hold an index and a value an entry, before they are made dense


def gram(phi1: Sparse, phi2: Sparse) -> Any:
    """Inner products of sparse rows.

    Args:
        phi1: CSR array ``[n1 feature]``.
        phi2: CSR array ``[n2 feature]``.

    Returns:
        NumPy array ``[n1 n2]``.
    """
    import numpy as np
    from scipy import sparse

    # Only columns in use: of V² possible bigrams a transposed array would keep a pointer each.
    used, where = np.unique(np.concatenate([phi1.indices, phi2.indices]), return_inverse=True)
    split = len(phi1.indices)
    rows = [
        sparse.csr_array((phi.data, columns, phi.indptr), shape=(phi.shape[0], max(1, len(used))))
        for phi, columns in ((phi1, where[:split]), (phi2, where[split:]))
    ]
    return (rows[0] @ rows[1].T).toarray()


def sparse_sums(ids: Int[Tensor, "doc column"], values: Float[Tensor, "doc column"], n_columns: int) -> Sparse:
    """Values added up in the column that each entry names.

    Args:
        ids: Columns; -1 adds nothing.
        values: What is added.
        n_columns: Columns of the result.

    Returns:
        CSR array ``[doc n_columns]``.
    """
    import numpy as np
    from scipy import sparse

    rows, positions = (ids >= 0).nonzero(as_tuple=True)
    entries = values[rows, positions].double().cpu().numpy()
    at = (rows.cpu().numpy(), ids[rows, positions].cpu().numpy().astype(np.int64))
    summed = sparse.csr_array((entries, at), shape=(len(ids), n_columns))
    summed.sum_duplicates()
    return summed


def token_counts(ids: Int[Tensor, "doc position"], n_tokens: int) -> Sparse:
    """How often each token occurs in each document.

    Args:
        ids: Documents.
        n_tokens: Size of the vocabulary.

    Returns:
        CSR array ``[doc token]``.
    """
    return sparse_sums(ids, torch.ones_like(ids, dtype=torch.float64), n_tokens)


def bigram_counts(ids: Int[Tensor, "doc position"], n_tokens: int) -> Sparse:
    """How often each pair of neighbouring tokens occurs in each document.

    Args:
        ids: Documents.
        n_tokens: Size V of the vocabulary.

    Returns:
        CSR array ``[doc V·a + b]``.
    """
    a, b = ids[:, :-1].long(), ids[:, 1:].long()
    pairs = torch.where(b >= 0, a * n_tokens + b, -1)
    return sparse_sums(pairs, torch.ones_like(pairs, dtype=torch.float64), n_tokens**2)


def length_column(ids: Int[Tensor, "doc position"], n_tokens: int) -> Sparse:
    """The length of each document, as one feature.

    Args:
        ids: Documents.
        n_tokens: Not read.

    Returns:
        CSR array ``[doc 1]``.
    """
    T = lengths(ids).double()
    return sparse_sums(torch.zeros_like(T, dtype=torch.int64)[:, None], T[:, None], 1)
