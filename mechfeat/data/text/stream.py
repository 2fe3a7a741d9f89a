"""Running text for language models: one long row of token ids, cut into windows in which each token's target is the next one."""

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from mechfeat.data.text.tokenize import Tokenizer, tokenizer
from mechfeat.data.text.vocabulary import Unknown, Vocabulary
from mechfeat.errors import OptionError, SchemaError


@dataclass(frozen=True, eq=False)
class Stream:
    """Running text over a vocabulary.

    Attributes:
        ids: Token ids, one after the other.
        vocabulary: What they mean.

    Example:
        >>> stream = Stream(torch.tensor([0, 1, 2, 3, 4, 5, 6]), Vocabulary(tuple("abcdefg")))
        >>> for ids, targets in stream.batches(1, window=4):
        ...     print(ids.tolist(), targets.tolist())
        [[0, 1, 2, 3]] [[1, 2, 3, 4]]
        [[4, 5]] [[5, 6]]
    """

    ids: Int[Tensor, " position"]
    vocabulary: Vocabulary

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counts(self) -> Int[Tensor, " token"]:
        """Occurrences of each token of the vocabulary."""
        return torch.bincount(self.ids, minlength=len(self.vocabulary))

    def batches(self, batch_size: int, *, window: int) -> Iterator[tuple[Int[Tensor, "row position"], Int[Tensor, "row position"]]]:
        """Windows and their targets: the text is cut into ``batch_size`` equal rows, which are walked side by side.

        Args:
            batch_size: Rows. What does not fill all of them alike is left out at the end.
            window: Positions of a window; the last may be shorter.

        Yields:
            Token ids, and at each position the next token of the row.

        Raises:
            OptionError: A size is not a positive integer.
        """
        rows = self.rows(batch_size)
        if not isinstance(window, int) or window < 1:
            raise OptionError("window", window, ("a positive integer",))
        for start in range(0, rows.shape[1] - 1, window):
            stop = min(start + window, rows.shape[1] - 1)
            yield rows[:, start:stop], rows[:, start + 1 : stop + 1]

    def rows(self, batch_size: int) -> Int[Tensor, "row position"]:
        """The text as equal rows, one after the other.

        Args:
            batch_size: Rows.

        Returns:
            Token ids; what does not fill all rows alike is left out at the end.

        Raises:
            OptionError: The number of rows is no positive integer, or larger than that of tokens.
        """
        if not isinstance(batch_size, int) or not 1 <= batch_size <= max(1, len(self.ids)):
            raise OptionError("batch_size", batch_size, (f"an integer from 1 to {len(self.ids)}, the number of tokens",))
        return self.ids[: len(self.ids) // batch_size * batch_size].view(batch_size, -1)


def load_stream(
    path: str | Path,
    *,
    tokenize: str | Tokenizer = "whitespace",
    eos: str | None = "<eos>",
    vocabulary: Vocabulary | None = None,
    unknown: Unknown = "error",
) -> Stream:
    """Running text of a file of lines, such as those of the Penn Treebank or WikiText-2.

    Args:
        path: The file; ``.gz`` is unpacked on the way.
        tokenize: ``"whitespace"``, ``"lower"``, or a function from a line to its tokens.
        eos: Token put at the end of each line, blank ones included; none if None.
        vocabulary: That of the training text; built on this text if None.
        unknown: What the vocabulary that is built does with tokens it does not hold.

    Returns:
        The text.

    Raises:
        SchemaError: The file holds no token.
        OptionError: An option has an unknown value, or ``unknown`` was given with a vocabulary.
        UnknownTokenError: A token is not in ``vocabulary``, whose policy is ``"error"``.
        FileNotFoundError: There is no such file.
    """
    if vocabulary is not None and unknown != "error":
        raise OptionError("unknown", unknown, ("left out: the vocabulary that is given has its own",))
    path, split = Path(path), tokenizer(tokenize)
    with io.TextIOWrapper(gzip.open(path) if path.suffix == ".gz" else path.open("rb"), encoding="utf-8-sig") as file:
        tokens = [token for line in file for token in (*split(line), *(() if eos is None else (eos,)))]
    if not tokens:
        raise SchemaError(str(path), None, "there is no token in it", "lines of text")
    if vocabulary is None:
        vocabulary = Vocabulary.build([tokens], unknown=unknown)
    return Stream(torch.tensor(vocabulary.ids(tokens), dtype=torch.int64), vocabulary)
