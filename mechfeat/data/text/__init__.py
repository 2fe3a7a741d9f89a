"""Texts as token ids: local files, Hugging Face names, running text, and corpora with a planted truth.

Documents are integer tensors ``[doc position]``: tokens from 0, and -1 after a document's end. Which column holds the text, what splits it
into tokens and what becomes of unknown tokens is stated by the caller and never guessed.
"""

from mechfeat.data.text.corpus import Corpus, padded
from mechfeat.data.text.files import load_texts
from mechfeat.data.text.hub import load_hub
from mechfeat.data.text.select import TokenGroups, select_tokens, smoothed_log_odds
from mechfeat.data.text.stream import Stream, load_stream
from mechfeat.data.text.synthetic import Planted, bigrams, negation, polarity, topics
from mechfeat.data.text.texts import Texts
from mechfeat.data.text.tokenize import lower, whitespace
from mechfeat.data.text.vocabulary import Vocabulary

__all__ = [
    "Corpus",
    "Planted",
    "Stream",
    "Texts",
    "TokenGroups",
    "Vocabulary",
    "bigrams",
    "load_hub",
    "load_stream",
    "load_texts",
    "lower",
    "negation",
    "padded",
    "polarity",
    "select_tokens",
    "smoothed_log_odds",
    "topics",
    "whitespace",
]
