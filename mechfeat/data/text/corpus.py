"""A corpus: documents as padded token ids, their labels, and the vocabulary that gives the ids their meaning."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechfeat.data.text.texts import Texts
from mechfeat.data.text.tokenize import Tokenizer, tokenizer
from mechfeat.data.text.vocabulary import Unknown, Vocabulary
from mechfeat.errors import OptionError, ShapeError


@dataclass(frozen=True, eq=False)
class Corpus:
    """Labelled documents over a vocabulary.

    Attributes:
        ids: Token ids ``[doc position]`` from 0; -1 is padding and stands only after a document's end. An empty document is all -1.
        vocabulary: What the ids mean.
        labels: Class index of each document; None if there are none.
        classes: Names of the classes, by index.

    Raises:
        ShapeError: There are not as many labels as documents, or an id is outside the vocabulary.
        OptionError: A label has no class.

    Example:
        >>> train = Corpus.build(Texts(("good film", "bad"), torch.tensor([1, 0]), ("neg", "pos")))
        >>> train.ids, train.labels, train.vocabulary.tokens
        (tensor([[ 2,  1],
                [ 0, -1]]), tensor([1, 0]), ('bad', 'film', 'good'))
        >>> test = Corpus.build(Texts(("good good story",), torch.tensor([1]), ("neg", "pos")), vocabulary=train.vocabulary)
        >>> test.tokens(0)
        ['good', 'good']
    """

    ids: Int[Tensor, "doc position"]
    vocabulary: Vocabulary
    labels: Int[Tensor, " doc"] | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ids.numel() and not (int(self.ids.min()) >= -1 and int(self.ids.max()) < len(self.vocabulary)):
            raise ShapeError(
                f"ids holds {int(self.ids.min())} to {int(self.ids.max())}, and the vocabulary has {len(self.vocabulary)} tokens. "
                f"Ids are from 0 to {len(self.vocabulary) - 1}, and -1 for padding."
            )
        if self.labels is None:
            return
        if self.labels.shape != self.ids.shape[:1]:
            raise ShapeError(f"There are {self.labels.numel()} labels for {len(self.ids)} documents. Give each document one.")
        wrong = self.labels[(self.labels < 0) | (self.labels >= len(self.classes))]
        if wrong.numel():
            raise OptionError("labels", int(wrong[0]), tuple(range(len(self.classes))))

    @classmethod
    def build(
        cls,
        texts: Texts,
        *,
        tokenize: str | Tokenizer = "whitespace",
        vocabulary: Vocabulary | None = None,
        unknown: Unknown = "drop",
        min_count: int = 1,
        max_length: int | None = None,
    ) -> "Corpus":
        """Tokenise texts. Without a vocabulary one is built on them, so give only training texts without one.

        Args:
            texts: The texts.
            tokenize: ``"whitespace"``, ``"lower"`` (the same in lower case), or a function from a text to its tokens.
            vocabulary: That of the training corpus; built on ``texts`` if None.
            unknown: What the vocabulary that is built does with tokens it does not hold.
            min_count: Occurrences that a token needs, in the vocabulary that is built.
            max_length: Tokens of a document that are kept, from its start; all if None.

        Returns:
            The corpus.

        Raises:
            OptionError: An option has an unknown value, or one of a vocabulary that is built was given with a vocabulary.
        """
        if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
            raise OptionError("max_length", max_length, ("a positive integer", None))
        if vocabulary is not None:
            for option, value, default in (("unknown", unknown, "drop"), ("min_count", min_count, 1)):
                if value != default:
                    raise OptionError(option, value, ("left out: the vocabulary that is given has its own",))
        split = tokenizer(tokenize)
        documents = [split(text) for text in texts.texts]
        if vocabulary is None:
            vocabulary = Vocabulary.build(documents, min_count=min_count, unknown=unknown)
        rows = [vocabulary.ids(d)[:max_length] for d in documents]
        return cls(padded(rows), vocabulary, texts.labels, texts.classes)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary."""
        return len(self.vocabulary)

    @property
    def lengths(self) -> Int[Tensor, " doc"]:
        """Tokens of each document."""
        return (self.ids >= 0).sum(1)

    @cached_property
    def counts(self) -> Any:
        """Occurrences of each token in each document, a SciPy CSR matrix ``[doc token]``."""
        from scipy.sparse import csr_matrix

        real = (self.ids >= 0).cpu()
        rows = torch.arange(len(self)).repeat_interleave(real.sum(1))
        columns = self.ids.cpu()[real]
        return csr_matrix((torch.ones(len(rows), dtype=torch.int64).numpy(), (rows.numpy(), columns.numpy())), (len(self), self.n_tokens))

    @cached_property
    def class_counts(self) -> Int[Tensor, "class token"]:
        """Occurrences of each token in the documents of each class."""
        labels, _ = self.labelled()
        found = torch.zeros(len(self.classes), self.n_tokens, dtype=torch.int64)
        for c in range(len(self.classes)):
            own = self.ids[labels == c]
            found[c] = torch.bincount(own[own >= 0].cpu(), minlength=self.n_tokens)
        return found

    def labelled(self) -> tuple[Int[Tensor, " doc"], int]:
        """The labels and the number of classes.

        Returns:
            Both.

        Raises:
            OptionError: There are no labels.
        """
        if self.labels is None:
            raise OptionError("labels", None, ("a class index for each document",))
        return self.labels, len(self.classes)

    def tokens(self, document: int) -> list[str]:
        """The tokens of a document, as the vocabulary has them.

        Args:
            document: Its index.

        Returns:
            Its tokens.
        """
        return [self.vocabulary.tokens[i] for i in self.ids[document].tolist() if i >= 0]

    def take(self, documents: Int[Tensor, " chosen"] | Bool[Tensor, " doc"] | Sequence[int]) -> "Corpus":
        """Some of the documents, over the same vocabulary.

        Args:
            documents: Their indices, or a mask of all documents.

        Returns:
            The smaller corpus, without positions that are padding in all its documents.

        Raises:
            ShapeError: A mask has another length than the corpus.
        """
        chosen = torch.as_tensor(documents)
        if chosen.dtype == torch.bool:
            if chosen.shape != self.ids.shape[:1]:
                raise ShapeError(
                    f"The mask has shape {list(chosen.shape)}, and there are {len(self)} documents. Give each document one entry."
                )
            chosen = chosen.nonzero()[:, 0]
        chosen = chosen.to(torch.int64)  # an empty sequence is floating-point
        ids = self.ids[chosen]
        used = int((ids >= 0).sum(1).max()) if len(ids) else 0
        return Corpus(ids[:, :used], self.vocabulary, None if self.labels is None else self.labels[chosen], self.classes)


def padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "doc position"]:
    """Documents of different lengths as one tensor.

    Args:
        rows: Ids of each document.

    Returns:
        Ids, with -1 after each document's end.

    Example:
        >>> padded([[3, 1], []])
        tensor([[ 3,  1],
                [-1, -1]])
    """
    lengths = torch.tensor([len(r) for r in rows], dtype=torch.int64)
    ids = torch.full((len(rows), int(lengths.max()) if len(rows) else 0), -1, dtype=torch.int64)
    ids[torch.arange(ids.shape[1]) < lengths[:, None]] = torch.tensor([i for r in rows for i in r], dtype=torch.int64)
    return ids
