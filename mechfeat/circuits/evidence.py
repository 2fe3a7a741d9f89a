r"""Null, reliability and interval of effects that are measured input by input, such as those of patches.

Two things would be nothing to find. The effect may have no direction: then each input's effect could as well have the other sign (Fisher's
test by sign changes). Or any other activation would do as well: then the effect could as well be that of a control, an activation from a
mismatched run (the permutation test in pairs). A draw is the larger of the two, so that an effect stands out only where it stands out from
both, and the largest over all places, so that looking at many of them is paid for.

Permuting which clean run is patched into which corrupted run would be no null here: a mean over inputs does not change where the place
carries everything and the network is linear after it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MIN_INPUTS = (
    6  # n inputs have 2ⁿ labellings, of which the observed one and its mirror image reach the value: 2 / 2⁶ is the first below 0.05
)


def partners(n: int, generator: torch.Generator) -> Int[Tensor, " input"]:
    """For each input another one, at random, each taken once.

    Args:
        n: Number of inputs, at least two.
        generator: Source of the draw.

    Returns:
        Indices, none at its own place.

    Example:
        >>> bool((partners(9, torch.Generator().manual_seed(0)) == torch.arange(9)).any())
        False
    """
    order = torch.randperm(n, generator=generator)
    found = torch.empty_like(order)
    found[order] = order.roll(1)
    return found


def relabelled(
    effects: Float[Tensor, "place input"],
    control: Float[Tensor, "place input"] | None,
    n_draws: int,
    generator: torch.Generator,
    floor: float = 0.0,
) -> Float[Tensor, " draw"]:
    r"""Largest mean effect over places, where there is nothing to find.

    .. math:: \max_p \max\Big( \Big|\tfrac1n \sum_i s_i e_{pi}\Big|, \;
              m_p + \Big|\tfrac1n \sum_i s_i \tfrac{e_{pi} - c_{pi}}2\Big| \Big), \qquad m_p = \tfrac1{2n} \sum_i (e_{pi} + c_{pi})

    with signs :math:`s_i = \pm 1`, the same at all places. The absolute values make it right for effects whose sign was chosen on the same
    data.

    Args:
        effects: Effect at each place on each input.
        control: The same with a mismatched activation; None where there is no such run.
        n_draws: Number of draws.
        generator: Source of the signs.
        floor: What rounding can reach; no draw is below it.

    Returns:
        Draws, in units of the effects.

    Source:
        Fisher 1935, *The Design of Experiments*, section 21; the largest over places is that of Westfall and Young 1993, *Resampling-Based
        Multiple Testing*.

    Example:
        >>> relabelled(torch.ones(1, 3), torch.zeros(1, 3), 4, torch.Generator().manual_seed(0)).round(decimals=2)
        tensor([0.6700, 0.6700, 1.0000, 0.6700])
    """
    n = effects.shape[1]
    draws = []
    for start in range(0, n_draws, 100):  # [draw place] is made a hundred draws at a time
        signs = torch.randint(2, (min(100, n_draws - start), n), generator=generator).to(effects) * 2 - 1
        found = (signs @ effects.T / n).abs()
        if control is not None:
            middle = (effects + control).mean(1) / 2
            found = found.maximum(middle + (signs @ (effects - control).T / (2 * n)).abs())
        # A sum in another order rounds otherwise; a draw that is the value itself must not fall below it.
        draws.append(found.amax(1) * (1 + 10 * torch.finfo(found.dtype).eps * n**0.5))
    return torch.cat(draws).clamp_min(floor)


def split_half_agreement(
    effects: Float[Tensor, "place input"], scale: Float[Tensor, " input"], generator: torch.Generator, n_splits: int = 100
) -> float | None:
    r"""Whether the strongest place of one half of the inputs has the same score in the other half.

    .. math:: 1 - \frac{|a - b|}{\max(|a|, |b|)}

    with :math:`a` the largest score on one half and :math:`b` that place's score on the other: 1 where they are equal, 0.5 where one is
    twice the other, 0 or less where nothing comes back. Mean over random splits.

    Args:
        effects: Effect at each place on each input.
        scale: What the effects of a half are divided by, as a mean over that half.
        generator: Source of the splits.
        n_splits: Number of splits.

    Returns:
        The agreement, in [-1, 1], dimensionless; None below four inputs.

    Example:
        >>> split_half_agreement(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([2.0, 4.0, 6.0, 8.0]), torch.Generator().manual_seed(0))
        1.0
    """
    n = effects.shape[1]
    if n < 4:
        return None
    found = []
    for _ in range(n_splits):
        order = torch.randperm(n, generator=generator).to(effects.device)
        a, b = (effects[:, h].mean(1) / scale[h].mean() for h in (order[: n // 2], order[n // 2 :]))
        best = int(a.argmax())
        size = max(float(a[best].abs()), float(b[best].abs()))
        found.append(1 - float((a[best] - b[best]).abs()) / size if size > 0 else 0.0)
    return sum(found) / n_splits
