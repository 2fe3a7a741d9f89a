"""A language model's logits after single tokens against what occurred after them in its training text."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechfeat.errors import ModelOutputError, ShapeError
from mechfeat.features import Finding, signal_share, storable
from mechfeat.hooks import HookedModel
from mechfeat.ntk.predict.cooccurrence import CoOccurrence
from mechfeat.ntk.predict.measured import check_settled
from mechfeat.probes import auroc


def next_token_logits(model: nn.Module | HookedModel, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token target"]:
    """Logits of the next token after each token alone.

    Args:
        model: A language model from ids ``[doc position]`` to logits ``[doc position target]`` or ``[doc target]``.
        tokens: Tokens, each a prefix of its own.

    Returns:
        float64.

    Raises:
        ModelOutputError: The model gives something else.
        NondeterministicModelError: In training mode two runs differ, as under dropout.
    """
    with torch.no_grad():
        out: Any = model(tokens[:, None])
    out = getattr(out, "logits", out)
    if not isinstance(out, Tensor) or out.ndim not in (2, 3) or len(out) != len(tokens):
        found = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ModelOutputError(f"The model gave {found} for {len(tokens)} prefixes of one token. It must give logits of the next token.")
    with torch.no_grad():
        check_settled(model, tokens[:, None], out)
    return (out[:, -1] if out.ndim == 3 else out).detach().double().cpu()


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageFinding(Finding):
    """Whether a language model's logits after a token follow what occurred after it.

    Attributes:
        tokens: The tokens.
        auc: For each token, how well logits tell next tokens that follow it more often than evenly (n above n_w/C) from the others.
        top_median: Median logit of its most frequent next tokens.
        bottom_median: Median logit of its least frequent ones.
        top: Logits of the most frequent, one row a token, NaN after the end.
        bottom: Logits of the least frequent.
    """

    tokens: Int[Tensor, " token"]
    auc: Float[Tensor, " token"]
    top_median: Float[Tensor, " token"]
    bottom_median: Float[Tensor, " token"]
    top: Float[Tensor, "token top"]
    bottom: Float[Tensor, "token bottom"]

    @property
    def ordered(self) -> Bool[Tensor, " token"]:
        """Whether the median of the most frequent is above that of the least frequent."""
        return self.top_median > self.bottom_median


def compare_language(
    found: CoOccurrence,
    logits: Float[Tensor, "token target"],
    tokens: Int[Tensor, " token"],
    *,
    k: int = 10,
    ties: Literal["all", "random"] = "all",
    n_null: int = 199,
    n_boot: int = 200,
    seed: int = 0,
) -> LanguageFinding:
    """Compares a language model's logits after single tokens with the co-occurrences in its training text.

    Args:
        found: Co-occurrences in the text.
        logits: Logits of the next token after each token, as :func:`next_token_logits` gives them.
        tokens: The tokens.
        k: How many most and least frequent next tokens.
        ties: What becomes of ties, as in :meth:`CoOccurrence.extremes`.
        n_null: Draws of the null.
        n_boot: Bootstrap draws of tokens.
        seed: Seed of all draws.

    Returns:
        ``value``: mean over tokens of the AUC, in [0, 1]. ``null``: the same with the logits of the tokens in another order: a model that
        only knows which tokens are frequent stays in it. ``interval``: bootstrap over tokens, 95 %. ``reliability``: share of signal in the
        distance to the null. ``n``: number of tokens.

    Raises:
        ShapeError: Shapes do not fit, there are fewer than two tokens, or a token has no next tokens above and below the mean.

    What :meth:`CoOccurrence.extremes` raises is raised as well.
    """
    if logits.shape != (len(tokens), found.n_tokens) or len(tokens) < 2:
        raise ShapeError(
            f"logits has shape {list(logits.shape)}, and there are {len(tokens)} tokens of a vocabulary of {found.n_tokens}. Logits are "
            "[token target], for two tokens or more."
        )
    logits, which = logits.detach().double().cpu(), [int(t) for t in tokens]
    candidates = found.examples > 0
    above = torch.stack([found.scores(t)[candidates] > 0 for t in which])
    if not bool((above.any(1) & ~above.all(1)).all()):
        bad = which[int((~(above.any(1) & ~above.all(1))).nonzero()[0])]
        raise ShapeError(f"Token {bad} has no next tokens both above and below the mean count. Leave it out.")
    kept = logits[:, candidates]
    generator = torch.Generator().manual_seed(seed)
    sets = [found.extremes(t, k, ties=ties, generator=generator) for t in which]
    tops, bottoms = ([row[s] for row, s in zip(logits, some)] for some in ([e.top for e in sets], [e.bottom for e in sets]))
    auc = auroc(kept, above)
    # Ranks do not change with the order of tokens, so a draw costs one sum over labels and ranks.
    table = torch.stack([auroc(kept[i].expand(len(which), -1), above) for i in range(len(which))])  # [logits of, counts of]
    draws = [torch.randperm(len(which), generator=generator) for _ in range(n_null)]
    null = torch.stack([table[order, torch.arange(len(which))].mean() for order in draws]) if n_null else None
    again = auc[torch.randint(len(auc), (n_boot, len(auc)), generator=generator)].mean(1) if n_boot else None
    interval, value = None, float(auc.mean())
    if again is not None:
        low, high = again.quantile(torch.tensor([0.025, 0.975], dtype=again.dtype)).tolist()
        interval = (low, high)
    return LanguageFinding(
        value=value,
        n=len(which),
        seed=seed,
        null=null,
        reliability=None if null is None or again is None else signal_share(value, null, float(again.std())),
        interval=interval,
        settings={"k": k, "ties": ties, "window": found.window, "null": "logits of another token", "n_null": n_null, "unit": "token"},
        tokens=tokens,
        auc=auc,
        top_median=torch.stack([t.quantile(0.5) for t in tops]),  # torch's median of an even number is the lower of the middle two
        bottom_median=torch.stack([b.quantile(0.5) for b in bottoms]),
        top=torch.nn.utils.rnn.pad_sequence(tops, batch_first=True, padding_value=float("nan")),
        bottom=torch.nn.utils.rnn.pad_sequence(bottoms, batch_first=True, padding_value=float("nan")),
    )
