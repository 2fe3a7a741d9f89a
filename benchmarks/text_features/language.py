"""A causal language model's logits against how often tokens precede their targets: PTB and WikiText-2."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mechfeat.data.text import Stream, load_stream, padded, topics
from mechfeat.models.text import CausalTransformerLM
from mechfeat.ntk.predict import compare_language, cooccurrence, next_token_logits

from .rows import TextRow, data_folder, save
from .training import Training

SEED, BATCH, WINDOW, DECAY, CLIP, DROPOUT = 2021, 20, 35, 0.95, 0.5, 0.2
RATES = {"ptb": 1.0, "wikitext2": 5.0}  # at 5 one epoch of PTB ends above the perplexity of a unigram table
SIZES = {"d_model": 200, "n_layers": 2, "n_heads": 2, "d_mlp": 200}
FILES = {"ptb": ("ptb.train.txt.gz", "ptb.valid.txt.gz"), "wikitext2": ("wiki.train.tokens.gz", "wiki.valid.tokens.gz")}
FREQUENT, TARGETS = 20, 10


def streams(name: str) -> tuple[Stream, Stream]:
    """Training and validation text."""
    folder = data_folder(name)
    train = load_stream(folder / FILES[name][0])
    return train, load_stream(folder / FILES[name][1], vocabulary=train.vocabulary)


def toy() -> tuple[Stream, Stream]:
    """Generated text whose tokens keep to a topic for a document, for a smoke run."""
    made = [topics(n, length=(20, 40), n_unseen=0, generator=torch.Generator().manual_seed(n)).corpus for n in (400, 40)]
    return tuple(Stream(c.ids[c.ids >= 0], c.vocabulary) for c in made)


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the next tokens."""
    ids, targets = batch
    return F.cross_entropy(net(ids).flatten(0, 1), targets.flatten())


def perplexity(net: nn.Module, stream: Stream) -> float:
    """Of held-out text, in windows."""
    total, n = 0.0, 0
    for ids, targets in stream.batches(10, window=WINDOW):
        total += float(loss(net, (ids, targets))) * targets.numel()
        n += targets.numel()
    return math.exp(total / n)


def unigram_perplexity(train: Stream, valid: Stream) -> float:
    """Of held-out text under the frequencies of the training text, one added to each count: what a model that reads nothing reaches."""
    counts = train.counts.double() + 1
    return float((counts / counts.sum()).log()[valid.ids].mean().neg().exp())


def experiment(name: str, text: tuple[Stream, Stream], *, epochs: int, folder: Path, out: Path) -> TextRow:
    """Train the language model, and compare logits of targets that often and rarely follow a token."""
    train, valid = text
    generator = torch.Generator().manual_seed(SEED)
    net = CausalTransformerLM(len(train.vocabulary), WINDOW, dropout=DROPOUT, generator=generator, **SIZES).float()
    torch.manual_seed(SEED)  # dropout
    windows = list(train.batches(BATCH, window=WINDOW))

    def batches(epoch: int) -> Sequence[Any]:
        return windows

    def measure(net: nn.Module) -> dict[str, Any]:
        return {"valid_perplexity": perplexity(net, valid)}

    settings = {
        **SIZES,
        "dropout": DROPOUT,
        "mask": "causal",
        "optimizer": f"SGD lr {RATES[name]:g}, times {DECAY:g} an epoch, gradients clipped at {CLIP:g}",
        "batch": BATCH,
        "window": WINDOW,
        "seed": SEED,
        "tokens": len(train),
        "vocabulary_size": len(train.vocabulary),
    }
    run = Training(
        net,
        torch.optim.SGD(net.parameters(), lr=RATES[name]),
        batches,
        loss,
        measure,
        {"experiment": name, **settings},
        folder / f"{name}.pt",
        clip=CLIP,
        decay=DECAY,
        every=100,
    )
    curve = run.run(epochs)
    result = {**curve[-1], "unigram_perplexity": unigram_perplexity(train, valid), **after_frequent(net, train, windows)}
    row = TextRow(name, "causal transformer", {**settings, "epochs": epochs}, result, curve, run.seconds)
    save(row, out)
    return row


def after_frequent(net: nn.Module, train: Stream, windows: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Logits after each of the most frequent tokens alone, of the targets that it precedes most and least often in the windows."""
    full = [torch.cat([ids, targets[:, -1:]], 1) for ids, targets in windows]
    text = padded([row.tolist() for block in full for row in block])
    counts = cooccurrence(text, n_tokens=len(train.vocabulary), window=WINDOW)
    tokens = train.counts.argsort(descending=True, stable=True)[:FREQUENT]
    logits = next_token_logits(net, tokens)
    found = {ties: compare_language(counts, logits, tokens, k=TARGETS, ties=ties, seed=SEED) for ties in ("random", "all")}
    drawn = found["random"]
    return {
        "ordered": int(drawn.ordered.sum()),
        "ordered_all_ties": int(found["all"].ordered.sum()),
        "of": len(tokens),
        "auc": drawn.value,
        "auc_interval": list(drawn.interval),
        "auc_null_median": float(drawn.null.median()),
        "established": drawn.established,
        "context_target_pairs": int(counts.counts.sum()),
        "different_pairs": len(counts.targets),
        "tokens": [train.vocabulary.tokens[t] for t in tokens.tolist()],
        "top_median": drawn.top_median.tolist(),
        "bottom_median": drawn.bottom_median.tolist(),
        "bottom_median_all_ties": found["all"].bottom_median.tolist(),
        "auc_by_token": drawn.auc.tolist(),
    }
