"""How a text becomes tokens. Nothing is guessed: splitting at white space is the default, and any function of a text can take its place."""

from collections.abc import Callable, Sequence

from mechfeat.errors import OptionError

Tokenizer = Callable[[str], Sequence[str]]


def whitespace(text: str) -> list[str]:
    """Tokens between white space, as they stand.

    Args:
        text: A text.

    Returns:
        Its tokens.

    Example:
        >>> whitespace("not  Bad , really")
        ['not', 'Bad', ',', 'really']
    """
    return text.split()


def lower(text: str) -> list[str]:
    """Tokens between white space, in lower case.

    Args:
        text: A text.

    Returns:
        Its tokens.

    Example:
        >>> lower("Not Bad")
        ['not', 'bad']
    """
    return text.lower().split()


def tokenizer(chosen: str | Tokenizer) -> Tokenizer:
    """The function that an option names.

    Args:
        chosen: ``"whitespace"``, ``"lower"`` or a function from a text to its tokens, which is returned as it is.

    Returns:
        The function.

    Raises:
        OptionError: The name is unknown.

    Example:
        >>> tokenizer(str.split)("a b")
        ['a', 'b']
    """
    if callable(chosen):
        return chosen
    known = {"whitespace": whitespace, "lower": lower}
    if chosen not in known:
        raise OptionError("tokenize", chosen, (*known, "a function from a text to its tokens"))
    return known[chosen]
