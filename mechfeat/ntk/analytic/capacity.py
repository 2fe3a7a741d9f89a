"""How much of a kernel is about n-grams: the XOR ratio."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mechfeat.errors import OptionError

CONTRASTS = {"a": (1.0, -1.0, 1.0, -1.0), "b": (1.0, 1.0, -1.0, -1.0), "xor": (1.0, -1.0, -1.0, 1.0)}


def xor_ratio(kernel: Callable[[Tensor], Tensor], tokens: Sequence[int] = (0, 1, 2, 3)) -> float:
    r"""Speed at which a kernel learns what two tokens mean together, over that at which it learns what each means.

    .. math:: \frac{2 e_{xor}}{e_a + e_b} , \qquad e_c = c^\top K c / 4

    with K the kernel of the documents ab, a'b, ab', a'b' and c the contrasts of the first token (+ - + -), of the second (+ + - -) and
    of both (+ - - +).

    Args:
        kernel: From documents to their kernel, such as an analytic kernel or that of a finite network.
        tokens: The four tokens a, a', b, b'.

    Returns:
        0 where the model is additive on bigrams, whatever it is trained on; dimensionless.

    Raises:
        OptionError: The tokens are not four different ones, or the kernel tells neither first nor second tokens apart.

    Source:
        Ours; the question is that of Sun, Li and Lu 2023, *Unraveling Feature Extraction Mechanisms in Neural Networks*.

    Example:
        >>> from mechfeat.ntk.analytic import BigramKernel
        >>> round(xor_ratio(BigramKernel()), 4)
        0.4286
    """
    if len(tokens) != 4 or len(set(tokens)) != 4:
        raise OptionError("tokens", tuple(tokens), ("four different tokens a, a', b, b'",))
    a, other_a, b, other_b = tokens
    K = kernel(torch.tensor([[a, b], [other_a, b], [a, other_b], [other_a, other_b]])).double()
    e = {
        name: float(torch.tensor(c, dtype=torch.float64, device=K.device) @ K @ torch.tensor(c, dtype=torch.float64, device=K.device)) / 4
        for name, c in CONTRASTS.items()
    }
    if not e["a"] + e["b"] > 0:
        raise OptionError("kernel", kernel, ("one that tells tokens apart",))
    return 2 * e["xor"] / (e["a"] + e["b"])
