"""``mechfeat tour``: the main job, once, on real data, in about a minute.

Every number that is printed goes into the report too, with the figure it belongs to.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mechfeat import circuits, evidence, ntk, plots, probes, superposition
from mechfeat.bench.oracles import ntk as oracle
from mechfeat.cli.info import info
from mechfeat.data import Digits, digits
from mechfeat.errors import ProofError
from mechfeat.features import FeatureSet, Finding
from mechfeat.hooks import HookedModel
from mechfeat.models import DigitsCNN, train
from mechfeat.report import Report

DIGIT = 8  # the hardest of the ten here, so that interval and null have something to say
HOOK = "relu3"
N_KERNEL = 100  # test digits in the kernel
N_LEARN = 60  # training digits of the predicted training
STEPS = (1, 3, 10, 30, 100)
N_EXACT = 6  # of which this many are compared with the exact kernel, which takes one backward pass a sample and output


@dataclass
class _Tour:
    """What the steps share."""

    report: Report
    generator: torch.Generator
    data: Digits
    model: HookedModel
    seed: int
    direction: probes.DirectionFinding | None = None

    def say(self, text: str) -> None:
        print(text, flush=True)

    def found(self, name: str, finding: Finding) -> None:
        self.say(f"  {name}: {finding.summary()}")
        self.report.finding(name, finding)


def tour(out: str | Path = "mechfeat-tour.html", *, seed: int = 0) -> Path:
    """Train a small CNN on digits and ask every question once.

    Args:
        out: Where the report is written.
        seed: Seed of everything random.

    Returns:
        Path of the report.

    Raises:
        ProofError: The kernel disagrees with the exact one.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    data = digits(seed=seed)
    net = DigitsCNN(generator=generator)
    lead = "One small network on handwritten digits: what it computes, where, from which weights, and which functions it learns easily."
    t = _Tour(Report("A tour of mechfeat", lead), generator, data, HookedModel(net), seed)
    for number, step in enumerate((_train, _hook_points, _direction, _ablation, _weights, _superposition, _kernel, _prediction), 1):
        with _timed(t, f"{number}. {(step.__doc__ or '').splitlines()[0].rstrip('.')}"):
            step(t)
    t.report.section("Environment")
    t.report.pre(info())
    path = t.report.write(out)
    t.say(f"\nreport: {path}\n{time.perf_counter() - start:.0f} s in all")
    return path


@contextmanager
def _timed(t: _Tour, title: str) -> Iterator[None]:
    t.say(f"\n{title}")
    start = time.perf_counter()
    yield
    t.say(f"  ({time.perf_counter() - start:.1f} s)")


def _train(t: _Tour) -> None:
    """Train a small CNN on handwritten digits."""
    d = t.data
    t.model.module.train()
    losses = train(t.model.module, d.x_train, d.y_train, epochs=8, generator=t.generator, progress=True)
    t.model.module.eval()
    with torch.no_grad():
        accuracy = (t.model(d.x_test).argmax(1) == d.y_test).float().mean().item()
    t.say(
        f"  {len(d.x_train)} training digits, loss {losses[0]:.3f} to {losses[-1]:.3f} nats; {accuracy:.1%} right of {len(d.x_test)}"
        " held-out digits"
    )
    t.report.section(
        "The network",
        f"{len(d.x_train)} real digits of 8 × 8 pixels, 8 epochs. It reads {accuracy:.1%} of {len(d.x_test)} held-out digits correctly.",
    )


def _hook_points(t: _Tour) -> None:
    """List its hook points."""
    table = t.model.describe(t.data.x_test)
    t.say("  " + str(table).replace("\n", "\n  "))
    with torch.no_grad():
        plain = t.model.module(t.data.x_test)
        recorded, cache = t.model.run_with_cache(t.data.x_test)
    same = torch.equal(plain, recorded)
    t.say(f"  all {len(cache)} recorded: output bit-equal to that of a plain call: {same}")
    t.report.text(
        f"The wrapper names {len(table)} hook points. Recording all of them leaves the output"
        f" {'bit for bit as it is' if same else 'CHANGED'}."
    )
    t.report.table(
        ("hook name", "kind", "axes", "calls"),
        [(r.name, r.kind, " ".join(f"{a}={s}" for a, s in zip(r.axes, r.shape)), r.calls or 0) for r in table],
    )


def _direction(t: _Tour) -> None:
    """Find a feature direction, with its null and its interval."""
    d = t.data
    cache = t.model.record(d.x_test, HOOK)
    finding = t.direction = probes.difference_of_means(cache.samples(HOOK), d.y_test == DIGIT, name=f"digit {DIGIT}", seed=t.seed)
    t.report.section(
        "A feature direction",
        f"The difference of mean activations at `{HOOK}` between digit {DIGIT} and the others, scored on inputs it has not seen.",
    )
    t.found(f"direction of digit {DIGIT} (AUROC, held out)", finding)
    t.report.figure(plots.projection(finding), "Each held-out digit along the direction.")
    t.report.figure(
        plots.null_distribution(finding, label="AUROC"), "The same procedure with permuted labels: what a direction scores by luck."
    )


def _ablation(t: _Tour) -> None:
    """Ablate it, and compare with ablating random directions."""
    d = t.data

    def margin(logits: Float[Tensor, "n class"]) -> Float[Tensor, " n"]:
        others = logits.masked_fill(F.one_hot(torch.tensor(DIGIT), logits.shape[1]).bool(), -torch.inf)
        return logits[:, DIGIT] - others.logsumexp(1)

    assert t.direction is not None
    finding = evidence.ablation_effect(
        t.model, t.direction.feature, d.x_test, margin, on=d.y_test == DIGIT, n_null=200, seed=t.seed, progress=True
    )
    t.report.section(
        "Does the network use it?",
        "The component along the direction is held at its mean. If the direction matters, the margin of its digit falls further than for"
        " directions drawn with the covariance of the activations.",
    )
    t.found(f"fall of the log-odds of {DIGIT} on images of {DIGIT} (nats)", finding)
    t.report.figure(
        plots.ablation(finding, metric=f"log-odds of {DIGIT} [nats]"), "The line is the feature, the bars are random directions."
    )


def _weights(t: _Tour) -> None:
    """Read the weights into a unit."""
    x = t.data.x_test[:200]
    readout = circuits.direct_weights(t.model, HOOK, "fc2", x, units=[DIGIT], seed=t.seed)
    unit = readout.strongest(DIGIT, 1)[0][0]
    t.say(f"  the logit of {DIGIT} gets most from neuron {unit} of {HOOK}")
    conv = circuits.direct_weights(t.model, "relu1", "conv2", x, units=[0, 1, 2, 3], seed=t.seed)
    strongest = ", ".join(f"{c} ({share:.0%})" for c, share in conv.strongest(0, 3))
    t.say(f"  unit 0 of conv2 reads channels {strongest} of relu1")
    t.report.section(
        "From which weights?", f"Direct weights into the logit of {DIGIT}, and from the first convolution into units of the second."
    )
    t.found(f"concentration of the logit of {DIGIT} on its strongest neuron (share)", readout)
    t.found("concentration of four conv2 units on their strongest channel (share)", conv)
    t.report.figure(
        plots.circuit_weights(conv), f"Kernels into unit 0 of conv2 from its strongest channels; its input comes from channels {strongest}."
    )
    t.report.figure(plots.contributions(conv), "Mean absolute contribution over the data, as a share of each unit's input.")


def _superposition(t: _Tour) -> None:
    """Measure superposition in its layers."""
    t.report.section(
        "Superposition",
        "Each layer reads directions from the channels before it. More directions than channels must overlap; the question is whether they"
        " overlap less, or more, than random ones.",
    )
    rows = []
    for layer, channels in (("conv2", None), ("fc1", int(t.model.weights["conv2.kernel"].shape[0])), ("fc2", None)):
        directions = superposition.read_directions(t.model, layer, n_channels=channels)
        finding = superposition.measure(directions, seed=t.seed)
        t.found(f"mean dimensionality of what {layer} reads", finding)
        W = directions.directions
        rows.append(
            (
                layer,
                len(directions),
                W.shape[1],
                len(directions) / W.shape[1],
                float(superposition.effective_rank(W)),
                float(superposition.participation_ratio(W)),
            )
        )
    t.report.table(("layer", "directions", "channels", "directions per channel", "effective rank", "participation ratio"), rows)
    last: FeatureSet = superposition.read_directions(t.model, "fc2")
    t.report.figure(plots.overlaps(superposition.measure(last, seed=t.seed)), "Cosine between the directions that the ten logits read.")


def _kernel(t: _Tour) -> None:
    """Plan, compute and prove its empirical NTK, layer by layer."""
    x, y = _balanced(t.data, N_KERNEL)
    plan = ntk.plan(t.model, x, outputs="trace")
    t.say("  " + str(plan).replace("\n", "\n  "))
    start = time.perf_counter()
    result = ntk.empirical_ntk(t.model, x, outputs="trace", layerwise=True, prove="always", seed=t.seed)
    seconds = time.perf_counter() - start
    few = t.data.x_test[:N_EXACT]
    exact = torch.stack(list(oracle.empirical_ntk(t.model.module, few).values())).sum(0)
    ours = ntk.empirical_ntk(t.model, few, seed=t.seed).kernel
    error = float((ours - exact).abs().max() / exact.abs().max())
    if error > 5e-6:
        raise ProofError(["the tour's kernel"], [error], "Please report this.")
    gaps = [c.gap for c in result.coverage if c.gap is not None]
    t.say(
        f"  {len(x)} digits in {seconds:.2f} s, first call and proof included; {sum(c.path == 'rule' for c in result.coverage)} of"
        f" {len(result.coverage)} parameters by rule"
    )
    t.say(f"  largest gap in the proof {max(gaps):.1e}; against the exact full kernel of {N_EXACT} digits {error:.1e} (float32)")
    same = y[:, None] == y
    off = ~torch.eye(len(x), dtype=torch.bool)
    K = result.kernel / result.kernel.diagonal().sqrt().outer(result.kernel.diagonal().sqrt())
    within, between = K[same & off].mean().item(), K[~same].mean().item()
    t.say(f"  mean cosine of gradients within a class {within:.2f}, between classes {between:.2f}")
    t.report.section(
        "Neural tangent kernel",
        f"The kernel of {len(x)} digits took {seconds:.2f} s with its proof. It agrees with one backward pass for each of {N_EXACT} samples"
        f" and output to {error:.1e} (float32). Gradients of digits of one class have a mean cosine of {within:.2f}, of different classes"
        f" {between:.2f}.",
    )
    t.report.pre(str(plan))
    t.report.table(
        ("parameter", "path", "detail", "gap in the proof"),
        [(c.parameter, c.path, c.detail, "–" if c.gap is None else f"{c.gap:.1e}") for c in result.coverage],
    )
    t.report.figure(plots.kernel_heatmap(result, labels=y), "Digits sorted by class: the blocks are pairs that learn together.")
    t.report.figure(plots.layer_share(result), "Where the network would learn, if trained further.")
    t.report.figure(plots.spectrum(result), "Eigenvalues of the kernel. Functions along the first are learnt first.")


def _prediction(t: _Tour) -> None:
    """Predict training from the kernel, then train."""
    d = t.data
    net = DigitsCNN(generator=torch.Generator().manual_seed(t.seed)).eval()
    finding = ntk.predict_training(
        net, d.x_train[:N_LEARN], d.y_train[:N_LEARN], d.x_test[:N_KERNEL], loss="softmax", lr=3e-4, steps=STEPS, seed=t.seed
    )
    t.report.section(
        "Training, predicted",
        f"Gradient descent on {N_LEARN} digits from a fresh start, foretold from the kernel at the start and then carried out. The network"
        f" trains like its linearisation until its kernel has moved: after {STEPS[-1]} steps by {finding.drift:.0%}. The null foretells"
        " from shuffled labels.",
    )
    t.found(f"share of the movement of {N_KERNEL} held-out digits that was foreseen, after {STEPS[-1]} steps", finding)
    rows = [(k, float(e), float(s)) for k, e, s in zip(finding.steps, finding.relative_errors, finding.explained)]
    t.say("  error over movement " + ", ".join(f"{e:.1%} at step {k}" for k, e, _ in rows))
    t.report.table(("step", "error over movement", "share foreseen"), rows)
    t.report.figure(
        plots.predicted_outputs(finding), "Every output of every held-out digit; on the line where predicted and actual are equal."
    )
    t.report.figure(plots.prediction_error({"digits CNN": finding}), "How the prediction wears off as the kernel moves.")


def _balanced(d: Digits, n: int) -> tuple[Float[Tensor, "n 1 8 8"], Int[Tensor, " n"]]:
    """The first test digits of each class, equally many."""
    rows = torch.cat([(d.y_test == k).nonzero()[: n // 10, 0] for k in range(10)])
    return d.x_test[rows], d.y_test[rows]
