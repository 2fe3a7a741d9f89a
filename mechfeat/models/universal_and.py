"""A network set by hand that computes the AND of every pair of its inputs in fewer neurons than there are pairs."""

from collections.abc import Sequence

import torch

from mechfeat.errors import OptionError
from mechfeat.models.bank import ToyBank
from mechfeat.models.toy_spec import ToySpec


def universal_and_bank(n_features: int, n_hidden: int, *, probability: float, seeds: Sequence[int] = (0,)) -> ToyBank:
    r"""Networks in which random neurons each look for two active features among those they see.

    .. math:: z_i = \operatorname{ReLU}\Big(\textstyle\sum_\alpha W_{\alpha i} x_\alpha - 1\Big), \qquad
              \hat y_{\alpha\beta} = \text{mean of } z_i \text{ over the neurons with } W_{\alpha i} = W_{\beta i} = 1

    with each :math:`W_{\alpha i}` 1 with a probability, else 0. Two active features give a neuron that sees both exactly 1. What disturbs
    are further active features: a neuron sees one with the same probability, so that with more neurons fewer need be seen by each.

    Args:
        n_features: Features, of values 0 and 1.
        n_hidden: Neurons.
        probability: Of a neuron seeing a feature.
        seeds: One for each instance.

    Returns:
        A bank with an output for each pair, in the order of :func:`mechfeat.data.universal_and`; a pair that no neuron sees reads 0.

    Raises:
        OptionError: The probability is not between 0 and 1.

    Source:
        Hänni et al. 2024, *Mathematical Models of Computation in Superposition*, the U-AND construction.

    Example:
        >>> bank = universal_and_bank(4, 200, probability=0.5)
        >>> bank(torch.tensor([[1.0, 0.0, 1.0, 0.0]]))[0, 0].topk(1).indices  # pairs 01, 02, 03, 12, 13, 23
        tensor([1])
    """
    if not 0 < probability <= 1:
        raise OptionError("probability", probability, ["a number above 0, and at most 1"])
    first, second = torch.combinations(torch.arange(n_features)).T
    weights, readouts = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        sees = (torch.rand(n_features, n_hidden, generator=generator, dtype=torch.float64) < probability).double()
        both = sees[first] * sees[second]
        weights.append(sees)
        readouts.append(both / both.sum(1, keepdim=True).clamp_min(1))
    spec = ToySpec(
        n_features,
        n_hidden,
        n_outputs=len(first),
        activation="identity",
        tied=False,
        out_bias=False,
        hidden_activation="relu",
        hidden_bias=True,
    )
    init = {"W": torch.stack(weights), "b_hidden": -torch.ones(n_hidden), "U": torch.stack(readouts)}
    return ToyBank(spec, seeds=seeds, init=init)
