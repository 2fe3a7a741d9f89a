"""Sweeps over activation and initial standard deviation: n-gram capacity, and the bias of tokens that no document has."""

import copy
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mechfeat.data.text import Corpus, polarity
from mechfeat.errors import QuadratureError, UnsupportedModelError
from mechfeat.models.text import BagMLP, Centred, InitSpec
from mechfeat.ntk import Activation, KernelDynamics, predict_features
from mechfeat.ntk.analytic import BigramKernel, ConvKernel, GatedLinearRNNKernel, MixingKernel, PooledKernel, kernel_of, xor_ratio
from mechfeat.ntk.predict import RichRegimeWarning, compare

from .rows import TextRow, save

ACTIVATIONS = ("linear", "relu", "gelu", "silu", "tanh", "erf")
DEVIATIONS = (0.1, 0.3, 1.0, 2.0)
SEED = 2021


def kernels(activation: str, sd: float) -> dict[str, Any]:
    """Kernels of the models that can tell bigrams, of one activation and standard deviation."""
    init, phi = InitSpec.uniform(sd), Activation.of(activation)
    recurrent = InitSpec(embedding=sd, hidden=sd, readout=sd, inputs=sd, recurrence=1.0)
    return {
        "CNN-3": ConvKernel(activation=phi, init=init),
        "attention + MLP": MixingKernel(activation=phi, init=init),
        "gated RNN": PooledKernel(last=GatedLinearRNNKernel(activation=phi, init=recurrent)),
    }


def ratio(kernel: Any) -> float | None:
    """XOR ratio; None where there is no kernel at infinite width (the gate of ReLU jumps), or none that quadrature can vouch for."""
    try:
        return xor_ratio(kernel)
    except (UnsupportedModelError, QuadratureError):
        return None


def capacity(out: Path) -> TextRow:
    """XOR ratios over activation × standard deviation; the matrix-vector model has no activation."""
    started = time.process_time()
    curve = []
    for sd in DEVIATIONS:
        for activation in ACTIVATIONS:
            ratios = {name: ratio(kernel) for name, kernel in kernels(activation, sd).items()}
            curve.append({"activation": activation, "sd": sd, **ratios})
        curve.append({"activation": None, "sd": sd, "matrix-vector": xor_ratio(BigramKernel(init=InitSpec.uniform(sd)))})
    result = {
        f"{name} {activation} sd {sd:g}": row[name]
        for row in curve
        for name, activation, sd in (("CNN-3", row["activation"], row["sd"]),)
        if name in row
    }
    settings = {"activations": list(ACTIVATIONS), "sds": list(DEVIATIONS), "recurrence": 1.0, "kernels": "closed form"}
    row = TextRow("xor", "closed forms", settings, result, curve, time.process_time() - started)
    save(row, out)
    return row


def trained(net: nn.Module, corpus: Corpus, *, steps: int, lr: float) -> None:
    """Full-batch descent on logistic loss. A bag's score of a document is the sum of its tokens' scores, which are computed once each."""
    counts = torch.as_tensor(corpus.counts.toarray(), dtype=torch.get_default_dtype())
    tokens, y = torch.arange(corpus.n_tokens)[:, None], corpus.labels.to(counts.dtype)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(counts @ net(tokens)[:, 0], y).backward()
        optimizer.step()


def bias(out: Path, *, width: int, steps: int, n_docs: int = 300) -> TextRow:
    """Scores of an unseen token, predicted and measured, on a corpus with 79 % positive documents."""
    started = time.process_time()
    made = polarity(n_docs, positive_share=0.79, generator=torch.Generator().manual_seed(SEED))
    corpus, unseen = made.corpus, int(made.groups["unseen"][0])
    tokens = torch.arange(corpus.n_tokens)[:, None]
    curve = []
    for sd in (0.1, 1.0):
        for activation in ("relu", "gelu", "silu", "tanh"):
            init, generator = InitSpec.uniform(sd), torch.Generator().manual_seed(SEED)
            base = BagMLP(corpus.n_tokens, width, width, activation=activation, init=init, generator=generator).float()
            kernel = kernel_of(base)
            limit = KernelDynamics(kernel(corpus.ids), corpus.labels, loss="logistic", lr=1e-9).lr_limit
            rate = (0.25 if sd == 1.0 else 0.01) * limit  # in the rich regime the edge of stability comes down as the kernel grows
            theory = predict_features(kernel, corpus.ids, corpus.labels, tokens, steps=steps, lr=rate, width=width)
            net = Centred(base)
            initial = copy.deepcopy(net)
            trained(net, corpus, steps=steps, lr=rate)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RichRegimeWarning)
                found = compare(theory, net, initial=initial, width=width)
            curve.append(
                {
                    "activation": activation,
                    "sd": sd,
                    "mu_over_rho": kernel.mu / kernel.rho,
                    "unseen_predicted": float(theory.scores[-1, unseen, 0]),
                    "unseen_measured": float(found.measured[unseen, 0]),
                    "unseen_cross_talk": float(found.cross_talk[unseen, 0]),
                    "pearson": found.value,
                    "relative_error": found.relative_error,
                    "drift": found.drift,
                    "regime": found.regime,
                }
            )
            print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in curve[-1].items()))
    settings = {
        "documents": n_docs,
        "positive_share": 0.79,
        "width": width,
        "steps": steps,
        "lr": "0.25 (sd 1) and 0.01 (sd 0.1) of the limit",
        "seed": SEED,
    }
    settings |= {"vocabulary_size": corpus.n_tokens, "loss": "logistic", "centred": True}
    result = {f"{r['activation']} sd {r['sd']:g} {k}": r[k] for r in curve for k in ("unseen_predicted", "unseen_measured", "regime")}
    row = TextRow("bias", "BagMLP", settings, result, curve, time.process_time() - started)
    save(row, out)
    return row
