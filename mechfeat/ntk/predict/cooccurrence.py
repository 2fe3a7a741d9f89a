r"""Language modelling as classification: which next tokens occur after which tokens.

Every position of a text is an example: its prefix is the document, the token that follows is the label, and there are as many classes as
tokens. With :math:`n_{w,c}` the number of times that w occurs in a prefix whose next token is c, the first step adds

.. math:: η\, [\, (ρ - μ)(n_{w,c} - n_w / C) + μ\, (T_c - T / C)\, ]

to the score of c after w. A prefix holds earlier tokens only: nothing here ever sees a token at or after its target.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.ntk.predict.sparse import check_documents


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class CoOccurrence(Stored):
    r"""How often each token occurs in a prefix of each next token; only pairs that occur are held.

    Attributes:
        starts: Where the pairs of each token start in ``targets``, and where those of the last one end.
        targets: Next tokens c, increasing within a token.
        counts: :math:`n_{w,c}`.
        token_totals: :math:`n_w = \sum_c n_{w,c}`.
        target_totals: :math:`T_c = \sum_w n_{w,c}`, the length of all prefixes of c.
        examples: Number of prefixes of each next token.
        n_tokens: Size C of the vocabulary.
        window: Longest prefix.
    """

    starts: Int[Tensor, " token_and_end"]
    targets: Int[Tensor, " pair"]
    counts: Int[Tensor, " pair"]
    token_totals: Int[Tensor, " token"]
    target_totals: Int[Tensor, " token"]
    examples: Int[Tensor, " token"]
    n_tokens: int
    window: int

    def row(self, token: int) -> Int[Tensor, " target"]:
        """Counts of one token with every next token.

        Args:
            token: The token w.

        Returns:
            :math:`n_{w,c}` for all c.

        Raises:
            ShapeError: The token is outside the vocabulary.
        """
        if not 0 <= token < self.n_tokens:
            raise ShapeError(f"Token {token} is outside the vocabulary of {self.n_tokens}: tokens are 0 to {self.n_tokens - 1}.")
        found = torch.zeros(self.n_tokens, dtype=torch.int64)
        here = slice(int(self.starts[token]), int(self.starts[token + 1]))
        found[self.targets[here]] = self.counts[here]
        return found

    def scores(self, token: int, *, rho: int | float = 1.0, mu: int | float = 0.0) -> Float[Tensor, " target"]:
        r"""First-order scores of all next tokens after one token, as the model fed with it alone gives them.

        .. math:: (ρ - μ)(n_{w,c} - n_w / C) + μ\, (T_c - T / C)

        Args:
            token: The token w.
            rho: Kernel of a token with itself; the default counts alone.
            mu: Kernel of two different tokens.

        Returns:
            Scores a step, over the learning rate; they sum to zero.

        What :meth:`row` raises is raised as well.
        """
        own = self.row(token).double() - float(self.token_totals[token]) / self.n_tokens
        shared = self.target_totals.double() - float(self.target_totals.sum()) / self.n_tokens
        return (rho - mu) * own + mu * shared

    def log_ratio(self, token: int, *, smoothing: int | float = 0.5) -> Float[Tensor, " target"]:
        r"""What softmax tends to as it subtracts what it already expects: how much more often a target follows than by chance.

        .. math:: \log \frac{n_{w,c} + s}{n_w T_c / T + s}

        Args:
            token: The token w.
            smoothing: Count s added to both.

        Returns:
            In nats.

        Raises:
            OptionError: ``smoothing`` is not positive.

        What :meth:`row` raises is raised as well.
        """
        if not smoothing > 0:
            raise OptionError("smoothing", smoothing, ("a positive count",))
        expected = float(self.token_totals[token]) * self.target_totals.double() / max(1, int(self.target_totals.sum()))
        return ((self.row(token) + smoothing) / (expected + smoothing)).log()

    def extremes(
        self, token: int, k: int = 10, *, ties: Literal["all", "random"] = "all", generator: torch.Generator | None = None
    ) -> "Extremes":
        """The next tokens that occur most and least often with one token, among all that are a next token at all.

        Most pairs never occur, so the least frequent are hundreds that tie at zero. They are all returned, or drawn from evenly: picking
        the first of them would pick by the order of the vocabulary, which is often that of frequency.

        Args:
            token: The token w.
            k: How many of each.
            ties: ``"all"`` returns everything that ties with the last of the k; ``"random"`` draws among it, so that there are k.
            generator: Source of these draws; a generator with seed 0 if None.

        Returns:
            Both sets, and how many tied for how many places.

        Raises:
            OptionError: ``k`` is not positive, or ``ties`` unknown.
            ShapeError: There are fewer than 2 k candidates.

        What :meth:`row` raises is raised as well.
        """
        if ties not in ("all", "random"):
            raise OptionError("ties", ties, ("all", "random"))
        if k < 1:
            raise OptionError("k", k, ("a positive number of targets",))
        candidates = (self.examples > 0).nonzero()[:, 0]
        if len(candidates) < 2 * k:
            raise ShapeError(f"{len(candidates)} tokens are a next token, and k={k} asks for {2 * k} of them. Take a smaller k.")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        counts = self.row(token)[candidates]
        sets, tied = [], []
        for sign in (1, -1):
            value = sign * counts
            edge = value.sort(descending=True).values[k - 1]
            above, at = candidates[value > edge], candidates[value == edge]
            places = k - len(above)
            tied.append((len(at), places))
            chosen = at if ties == "all" else at[torch.randperm(len(at), generator=generator)[:places]]
            sets.append(torch.cat([above, chosen.sort().values]))
        return Extremes(top=sets[0], bottom=sets[1], top_tied=tied[0], bottom_tied=tied[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Extremes:
    """Most and least frequent next tokens of a token.

    Attributes:
        top: Most frequent.
        bottom: Least frequent.
        top_tied: How many candidates tied at the edge of ``top``, and for how many places.
        bottom_tied: The same for ``bottom``.
    """

    top: Int[Tensor, " top"]
    bottom: Int[Tensor, " bottom"]
    top_tied: tuple[int, int]
    bottom_tied: tuple[int, int]


def cooccurrence(ids: Int[Tensor, "sequence position"], *, n_tokens: int, window: int, progress: bool = False) -> CoOccurrence:
    """Counts, for each pair of tokens, how often the first occurs in a prefix whose next token is the second. Causal, and sparse.

    Args:
        ids: Sequences, -1 after their ends; prefixes do not cross from one to the next. One long text is ``text[None]``; blocks of
            ``window + 1`` tokens give the prefixes that a model trained on such blocks has.
        n_tokens: Size of the vocabulary.
        window: Longest prefix, in tokens; the token right before the target is part of it.
        progress: Show a progress bar.

    Returns:
        Counts.

    Raises:
        OptionError: ``window`` is not positive.
        ShapeError: An id is outside the vocabulary.

    Cost:
        O(tokens · window) time, and memory for the pairs that occur.

    Example:
        >>> found = cooccurrence(torch.tensor([[0, 1, 0, 2]]), n_tokens=3, window=2)
        >>> found.row(0), found.row(1), found.row(2)  # the prefixes are (0), (0, 1) and (1, 0), of the targets 1, 0 and 2
        (tensor([1, 1, 1]), tensor([1, 0, 1]), tensor([0, 0, 0]))
    """
    import numpy as np
    from scipy import sparse
    from tqdm.auto import tqdm

    if not isinstance(window, int) or window < 1:
        raise OptionError("window", window, ("a positive number of tokens",))
    check_documents(ids, "ids", n_tokens)
    text = ids.cpu().numpy()
    total = sparse.csr_array((n_tokens, n_tokens), dtype=np.int64)
    offsets = range(1, min(window, text.shape[1] - 1) + 1)
    for start in tqdm(offsets[::8], desc="co-occurrence", unit="× 8 offsets", disable=not progress):
        before, after = [], []
        for k in range(start, min(start + 8, offsets.stop)):
            real = text[:, k:] >= 0  # padding is at the end, so what comes before a token is a token
            before.append(text[:, :-k][real])
            after.append(text[:, k:][real])
        at = (np.concatenate(before), np.concatenate(after))
        total = total + sparse.csr_array((np.ones(len(at[0]), np.int64), at), shape=total.shape)
    total.sum_duplicates()
    targets = text[:, 1:][text[:, 1:] >= 0]
    return CoOccurrence(
        starts=torch.from_numpy(total.indptr.astype(np.int64)),
        targets=torch.from_numpy(total.indices.astype(np.int64)),
        counts=torch.from_numpy(total.data.astype(np.int64)),
        token_totals=torch.from_numpy(np.asarray(total.sum(1)).ravel().astype(np.int64)),
        target_totals=torch.from_numpy(np.asarray(total.sum(0)).ravel().astype(np.int64)),
        examples=torch.from_numpy(np.bincount(targets, minlength=n_tokens).astype(np.int64)),
        n_tokens=n_tokens,
        window=window,
    )
