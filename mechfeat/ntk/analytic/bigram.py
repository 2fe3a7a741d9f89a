"""Multiplicative models of neighbouring tokens at infinite width: linear models of bigram counts."""

from dataclasses import dataclass

from mechfeat.models.text.bigram import BigramMatrixVector, HadamardBigram
from mechfeat.ntk.analytic.base import init_of
from mechfeat.ntk.analytic.features import FeatureBlock, FeatureKernel, FeatureMap, bigram_counts, token_counts


@dataclass(frozen=True, kw_only=True)
class BigramKernel(FeatureKernel):
    r"""Kernel of :class:`~mechfeat.models.text.BigramMatrixVector`.

    .. math:: Θ(x, x') = u^2 (s_e^2 + s_v^2) \sum_a n_a n'_a + (s_M^2 s_e^2 + s_v^2 s_e^2 + s_v^2 s_M^2) \sum_{ab} n_{ab} n'_{ab}

    Attributes:
        unigram: Weight u of the part without products.

    Source:
        Sun, Li and Lu 2023, *Unraveling Feature Extraction Mechanisms in Neural Networks*, name the model; form and kernel are ours.

    Example:
        >>> import torch
        >>> BigramKernel()(torch.tensor([[0, 1], [1, 0]]))  # they share both tokens, and no bigram
        tensor([[7., 4.],
                [4., 7.]], dtype=torch.float64)
    """

    unigram: int | float = 1.0

    @classmethod
    def of(cls, module: BigramMatrixVector) -> "BigramKernel":
        """The kernel of a matrix-vector model.

        Args:
            module: The finite network.

        Returns:
            Its kernel at infinite width.
        """
        return cls(unigram=module.unigram, init=init_of(module), n_tokens=module.n_tokens)

    def feature_map(self) -> FeatureMap:
        """Counts of tokens and of bigrams.

        Returns:
            Two kinds of features.
        """
        s = self.init
        one = s.trains("readout") * s.embedding**2 + s.trains("embedding") * s.readout**2
        two = (
            s.trains("readout") * s.token_matrix**2 * s.embedding**2
            + s.trains("token_matrix") * s.readout**2 * s.embedding**2
            + s.trains("embedding") * s.readout**2 * s.token_matrix**2
        )
        tokens = FeatureBlock("tokens", float(self.unigram**2 * one), token_counts)
        return FeatureMap((tokens, FeatureBlock("bigrams", float(two), bigram_counts)))


@dataclass(frozen=True, kw_only=True)
class HadamardKernel(FeatureKernel):
    r"""Kernel of :class:`~mechfeat.models.text.HadamardBigram`.

    .. math:: Θ(x, x') = \big[τ^4 + 2 s_v^2 τ^2 (s_e^2 + s_w^2)\big] \sum_{ab} n_{ab} n'_{ab}

    Source:
        Mitchell and Lapata 2008, *Vector-based Models of Semantic Composition*, section 3 (the model); the kernel is derived in the guide.

    Example:
        >>> import torch
        >>> HadamardKernel()(torch.tensor([[0, 1, 0], [0, 1, -1]]))
        tensor([[10.,  5.],
                [ 5.,  5.]], dtype=torch.float64)
    """

    @classmethod
    def of(cls, module: HadamardBigram) -> "HadamardKernel":
        """The kernel of entry-wise products.

        Args:
            module: The finite network.

        Returns:
            Its kernel at infinite width.
        """
        return cls(init=init_of(module), n_tokens=module.n_tokens)

    def feature_map(self) -> FeatureMap:
        """Counts of bigrams.

        Returns:
            One kind of features.
        """
        s = self.init
        below = s.trains("hidden") * s.embedding**2 + s.trains("embedding") * s.hidden**2
        weight = s.trains("readout") * s.tau_sq**2 + 2 * s.readout**2 * s.tau_sq * below
        return FeatureMap((FeatureBlock("bigrams", float(weight), bigram_counts),))
