"""A vocabulary, built on training documents alone, that says what becomes of a token it does not hold."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mechfeat.errors import OptionError, UnknownTokenError

Unknown = Literal["drop", "error", "unk"]
_POLICIES = ("drop", "error", "unk")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with ids from 0, in a fixed order.

    Attributes:
        tokens: The tokens; a token's id is its place.
        unknown: What becomes of other tokens: ``"drop"`` leaves them out of the document, ``"error"`` raises, ``"unk"`` puts ``unk`` there.
        unk: The token that stands for unknown ones under ``unknown="unk"``; it must be among the tokens.

    Raises:
        OptionError: The policy is unknown, a token occurs twice, or ``unk`` is not among the tokens although it is needed.

    Example:
        >>> Vocabulary(("good", "bad")).ids(["bad", "film", "good"])
        [1, 0]
        >>> Vocabulary(("good", "<unk>"), unknown="unk").ids(["bad", "good"])
        [1, 0]
    """

    tokens: tuple[str, ...]
    unknown: Unknown = "drop"
    unk: str = "<unk>"

    def __post_init__(self) -> None:
        if self.unknown not in _POLICIES:
            raise OptionError("unknown", self.unknown, _POLICIES)
        if len(self._ids) != len(self.tokens):
            twice = next(t for t, n in Counter(self.tokens).items() if n > 1)
            raise OptionError("tokens", twice, ("each token once",))
        if self.unknown == "unk" and self.unk not in self._ids:
            raise OptionError("unk", self.unk, ("one of the tokens", "unknown='drop'", "unknown='error'"))

    @classmethod
    def build(
        cls,
        documents: Iterable[Sequence[str]],
        *,
        min_count: int = 1,
        max_size: int | None = None,
        unknown: Unknown = "drop",
        unk: str = "<unk>",
    ) -> "Vocabulary":
        """The tokens of training documents, the most frequent first, equal counts in alphabetical order.

        Args:
            documents: Tokens of each training document.
            min_count: Occurrences that a token needs.
            max_size: Tokens kept at most, beside ``unk``.
            unknown: What becomes of tokens that it does not hold.
            unk: Stands for them under ``unknown="unk"``; it is put last where the documents do not hold it themselves.

        Returns:
            The vocabulary.

        Raises:
            OptionError: ``min_count`` or ``max_size`` is not positive, or the policy is unknown.

        Example:
            >>> Vocabulary.build([["b", "a"], ["b"]], unknown="unk").tokens
            ('b', 'a', '<unk>')
        """
        for option, value in (("min_count", min_count), ("max_size", max_size)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OptionError(option, value, ("a positive integer",))
        counts: Counter[str] = Counter()
        for document in documents:
            counts.update(document)
        kept = sorted((t for t, n in counts.items() if n >= min_count), key=lambda t: (-counts[t], t))[:max_size]
        if unknown == "unk" and unk not in kept:
            kept.append(unk)
        return cls(tuple(kept), unknown, unk)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {t: i for i, t in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def id(self, token: str) -> int:
        """The id of a token.

        Args:
            token: A token of the vocabulary.

        Returns:
            Its id.

        Raises:
            UnknownTokenError: The vocabulary does not hold it.
        """
        if token not in self._ids:
            raise UnknownTokenError([token], self.tokens)
        return self._ids[token]

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of a document's tokens, unknown ones treated as ``unknown`` says.

        Args:
            tokens: The tokens.

        Returns:
            Ids; fewer than tokens where unknown ones were dropped.

        Raises:
            UnknownTokenError: ``unknown="error"``, and the vocabulary does not hold a token.
        """
        known = self._ids
        if self.unknown == "drop":
            return [known[t] for t in tokens if t in known]
        if self.unknown == "unk":
            stand_in = known[self.unk]
            return [known.get(t, stand_in) for t in tokens]
        missing = [t for t in dict.fromkeys(tokens) if t not in known]
        if missing:
            raise UnknownTokenError(missing, self.tokens)
        return [known[t] for t in tokens]
