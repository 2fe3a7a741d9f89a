"""
Which words will a text classifier learn?
=========================================

The tangent kernel of a network of infinite width says what training will make of every token, before it starts: how much a token stands
with one label, and a bias that all tokens share, unseen ones included. Here both are predicted for a generated corpus whose truth is
planted, networks are trained, and the two are compared.
"""

# %%
# A corpus with a planted truth
# -----------------------------
#
# Three hundred short documents over seventy tokens: ten positive and ten negative ones, thirty that say nothing, and twenty that never
# occur. Four documents in five are positive.

import torch
import torch.nn.functional as F

import mechfeat as mf
from mechfeat.models.text import BagMLP, Centred
from mechfeat.ntk.analytic import ConvKernel, kernel_of, xor_ratio

made = mf.data.text.polarity(300, n_neutral=30, n_unseen=20, positive_share=0.79, generator=torch.Generator().manual_seed(0))
corpus, unseen = made.corpus, made.groups["unseen"]
for i in range(2):
    print(corpus.classes[int(corpus.labels[i])], corpus.tokens(i))

# %%
# The prediction
# --------------
#
# :func:`~mechfeat.ntk.analytic.kernel_of` gives the infinite-width kernel of a bag-of-tokens network, and
# :func:`~mechfeat.ntk.predict_features` the score that each token gets from training with it. Each is printed with its cross-talk: what
# other tokens add to it by accident in a network of this width.

WIDTH, STEPS = 1024, (3, 10, 30, 100)
tokens = torch.arange(corpus.n_tokens)[:, None]


def network(activation: str) -> BagMLP:
    """A bag of tokens with fixed random weights."""
    return BagMLP(corpus.n_tokens, WIDTH, WIDTH, activation=activation, generator=torch.Generator().manual_seed(0))


def rate(net: BagMLP) -> float:
    """A quarter of the learning rate up to which each step lowers the loss."""
    return mf.ntk.KernelDynamics(kernel_of(net)(corpus.ids), corpus.labels, loss="logistic", lr=1e-9).lr_limit / 4


def predict(net: BagMLP) -> mf.ntk.FeaturePrediction:
    """Scores of all tokens after training."""
    options = {"steps": STEPS, "lr": rate(net), "width": WIDTH, "names": corpus.vocabulary.tokens}
    return mf.ntk.predict_features(kernel_of(net), corpus.ids, corpus.labels, tokens, **options)


theory = {activation: predict(network(activation)) for activation in ("relu", "tanh")}
print(theory["relu"].table(rows=6))

# %%
# Training
# --------
#
# Full-batch descent of the network itself, from zero: :class:`~mechfeat.models.text.Centred` takes away what it says at the start. A bag's
# output on a document is the sum over its tokens, so that each token is computed once. On the way the network's scores are compared with
# the predicted ones.

counts, y = torch.as_tensor(corpus.counts.toarray()).float(), corpus.labels.float()


def train(activation: str) -> list[mf.ntk.FeatureComparison]:
    """Descent on logistic loss, and a comparison at each of the numbers of steps that were predicted."""
    net, before, found = Centred(network(activation)), Centred(network(activation)), []
    optimizer = torch.optim.SGD(net.model.parameters(), lr=rate(net.model))
    for step in range(1, STEPS[-1] + 1):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(counts @ net(tokens)[:, 0], y).backward()
        optimizer.step()
        if step in STEPS:
            found.append(mf.ntk.compare(theory[activation], net, initial=before, step=step))
    return found


found = {activation: train(activation) for activation in theory}
relu = found["relu"][-1]
print(relu)
assert relu.value > 0.99
assert relu.established
assert relu.regime == "kernel regime"

mf.plots.score_curves(theory["relu"], found["relu"])

# %%
# Each point is one token. On the line the network learnt what the kernel said, up to cross-talk.

mf.plots.predicted_scores(relu)

# %%
# The bias of ReLU
# ----------------
#
# Tokens that no document has get a positive score from ReLU, because most documents are positive and ReLU neurons are on average on
# whatever the token. Tanh is odd, its mean is zero, and so is its prediction; what is left in the network is cross-talk, which the mean
# over twenty tokens reduces.

for activation, several in found.items():
    one = several[-1]
    talk = float(one.cross_talk[unseen, 0].mean())
    predicted, measured = float(one.bias_predicted[0]), float(one.bias_measured[0])
    print(f"{activation}: unseen tokens {predicted:+.3f} predicted, {measured:+.3f} in the network, cross-talk of one ± {talk:.3f}")
    assert abs(measured - predicted) < talk
assert float(relu.bias_measured[0]) > 0.05
assert float(found["tanh"][-1].bias_predicted[0]) == 0.0

mf.plots.unseen_bias(theory["relu"], found["relu"])

# %%
# Pairs of tokens
# ---------------
#
# Can a convolutional network learn that ``not bad`` is good? The XOR ratio says how fast it learns what two tokens mean together, over how
# fast it learns what each means. It depends on activation and initial variance: ReLU has the same capacity at any scale, smooth activations
# lose theirs as the initial weights get small, and without an activation there is none.

activations, deviations = ["linear", "relu", "gelu", "tanh"], [0.1, 0.3, 1.0]
ratios = torch.tensor(
    [
        [xor_ratio(ConvKernel(activation=mf.ntk.Activation.of(phi), init=mf.models.text.InitSpec.uniform(sd))) for sd in deviations]
        for phi in activations
    ]
)
assert bool((ratios[0] == 0).all())
assert bool(((ratios[1] - 0.191).abs() < 0.002).all())
assert bool((ratios[2:, 0] < 0.002).all())

mf.plots.xor_map(ratios, activations, deviations)
