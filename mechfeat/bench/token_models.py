"""Every text model with an infinite-width kernel, in each of its forms, and eight documents to hold both sides against each other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mechfeat.models.text import (
    BagMLP,
    BigramMatrixVector,
    GatedLinearRNN,
    HadamardBigram,
    InitSpec,
    LinearRNN,
    MatrixVectorRNN,
    MixingBlock,
    SelfAttention,
    TextCNN,
    TextModel,
    pad,
)

N_TOKENS = 6
DOCUMENTS = [[0, 1, 2], [1], [2, 2, 3, 0], [0, 1, 2, 3, 4], [4, 0, 1], [3, 5], [5, 5], [1, 2, 0, 1]]
IDS = pad(DOCUMENTS)
INIT = InitSpec(embedding=1.1, hidden=0.9, readout=0.8, token_matrix=1.2, recurrence=0.7, inputs=1.3)


def given_mixing() -> Tensor:
    """A fixed mixing of five positions, of the default dtype.

    Returns:
        Entries between -0.5 and 1.
    """
    i, j = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")
    return 0.25 + 0.75 * torch.cos(1 + 2 * i + 3 * j + i * j)


Build = Callable[..., TextModel]
MODELS: dict[str, Build] = {
    "bag relu": lambda d, **o: BagMLP(N_TOKENS, d, d, **o),
    "bag tanh": lambda d, **o: BagMLP(N_TOKENS, d, d, activation="tanh", **o),
    "bag gelu": lambda d, **o: BagMLP(N_TOKENS, d, d, activation="gelu", **o),
    "bag erf": lambda d, **o: BagMLP(N_TOKENS, d, d, activation="erf", **o),
    "bag silu": lambda d, **o: BagMLP(N_TOKENS, d, d, activation="silu", **o),
    "cnn 3 relu": lambda d, **o: TextCNN(N_TOKENS, d, d, **o),
    "cnn 3 cos": lambda d, **o: TextCNN(N_TOKENS, d, d, activation="cos", **o),  # not 0 at 0: padding would be seen
    "cnn 3 tanh": lambda d, **o: TextCNN(N_TOKENS, d, d, activation="tanh", **o),
    "cnn 2 padding 0 gelu": lambda d, **o: TextCNN(N_TOKENS, d, d, kernel_size=2, padding=0, activation="gelu", **o),
    "cnn 4 padding 1 erf": lambda d, **o: TextCNN(N_TOKENS, d, d, kernel_size=4, padding=1, activation="erf", **o),
    "attention": lambda d, **o: SelfAttention(N_TOKENS, d, **o),
    "attention residual": lambda d, **o: SelfAttention(N_TOKENS, d, residual=True, **o),
    "attention value": lambda d, **o: SelfAttention(N_TOKENS, d, value=True, **o),
    "attention value residual": lambda d, **o: SelfAttention(N_TOKENS, d, value=True, residual=True, **o),
    "attention separate": lambda d, **o: SelfAttention(N_TOKENS, d, query_key="separate", **o),
    "mixing attention relu": lambda d, **o: MixingBlock(N_TOKENS, d, d, **o),
    "mixing causal attention last erf": lambda d, **o: MixingBlock(
        N_TOKENS, d, d, mixing="causal_attention", readout="last", activation="erf", **o
    ),
    "mixing mean gelu": lambda d, **o: MixingBlock(N_TOKENS, d, d, mixing="mean", residual=0.5, activation="gelu", **o),
    "mixing matrix relu": lambda d, **o: MixingBlock(N_TOKENS, d, d, mixing=given_mixing(), residual=0, **o),
    "bigram": lambda d, **o: BigramMatrixVector(N_TOKENS, d, unigram=0.7, **o),
    "hadamard": lambda d, **o: HadamardBigram(N_TOKENS, d, d, **o),
    "mv-rnn": lambda d, **o: MatrixVectorRNN(N_TOKENS, d, **o),
    "mv-rnn sum": lambda d, **o: MatrixVectorRNN(N_TOKENS, d, readout="sum", **o),
    "linear rnn": lambda d, **o: LinearRNN(N_TOKENS, d, **o),
    "linear rnn sum": lambda d, **o: LinearRNN(N_TOKENS, d, readout="sum", **o),
    "gated rnn erf": lambda d, **o: GatedLinearRNN(N_TOKENS, d, d, activation="erf", **o),
    "gated rnn sum tanh": lambda d, **o: GatedLinearRNN(N_TOKENS, d, d, activation="tanh", readout="sum", **o),
}
FORMS = (
    "bag relu",
    "cnn 3 cos",
    "cnn 4 padding 1 erf",
    "attention",
    "attention value residual",
    "attention separate",
    "mixing attention relu",
    "mixing causal attention last erf",
    "mixing matrix relu",
    "bigram",
    "hadamard",
    "mv-rnn",
    "linear rnn sum",
    "gated rnn erf",
)  # those that differ in more than the activation: what short tests take


def build(name: str, width: int, seed: int = 0, init: InitSpec = INIT, **options: Any) -> TextModel:
    """A model of the list.

    Args:
        name: Its name.
        width: Channels and hidden neurons.
        seed: Of its weights.
        init: Standard deviations.
        **options: Others of the model.

    Returns:
        The model.
    """
    return MODELS[name](width, init=init, generator=torch.Generator().manual_seed(seed), **options)
