"""A small unbalanced corpus, and a bag of tokens trained on it."""

import copy

import torch
import torch.nn.functional as F

from mechfeat.models.text import BagMLP, InitSpec
from mechfeat.ntk import empirical_ntk
from mechfeat.ntk.analytic import BagKernel

V, N, UNSEEN = 50, 300, 8  # tokens that documents have, documents, and tokens that none of them has


def corpus(n_classes=2, n=N, v=V, seed=0, lean=1.0, positive=0.79):
    """Documents of 4 to 12 tokens whose tokens lean towards classes, unevenly many of each class, and single tokens to score."""
    g = torch.Generator().manual_seed(seed)
    share = torch.tensor([1 - positive, positive]) if n_classes == 2 else torch.tensor([0.4, 0.3, 0.2, 0.1])[:n_classes]
    labels = torch.multinomial(share, n, replacement=True, generator=g)
    odds = (lean * torch.randn(n_classes, v, generator=g)).exp()
    tokens = torch.multinomial(odds[labels], 12, replacement=True, generator=g)
    lengths = torch.randint(4, 13, (n, 1), generator=g)
    docs = torch.where(torch.arange(12) < lengths, tokens, -1)
    return docs, labels, torch.arange(v + UNSEEN)[:, None]


def counts(docs, v=V + UNSEEN):
    return torch.stack([torch.bincount(d[d >= 0], minlength=v) for d in docs]).to(torch.get_default_dtype())


def network(activation, m, *, sd=1.0, n_classes=1, seed=0, dtype=torch.float32, v=V + UNSEEN):
    g = torch.Generator().manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return BagMLP(v, m, m, activation=activation, n_outputs=n_classes, init=InitSpec.uniform(sd), generator=g)
    finally:
        torch.set_default_dtype(before)


def train(net, docs, labels, stops, lr):
    """Full-batch descent on the mean loss of the centred network; copies of the network at the stops.

    A bag of tokens is a sum over tokens, so that a document's score is its counts times the scores of single tokens.
    """
    net = copy.deepcopy(net)
    tokens = torch.arange(net.n_tokens)[:, None]
    n = counts(docs, net.n_tokens).to(net.W_E)
    start, found = net(tokens).detach(), []
    parameters = list(net.parameters())
    y = labels if net.n_outputs > 1 else (2 * labels - 1).to(n)
    for step in range(1, max(stops) + 1):
        f = n @ (net(tokens) - start)
        loss = F.cross_entropy(f, y) if net.n_outputs > 1 else F.softplus(-y * f[:, 0]).mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients):
                p.sub_(g, alpha=lr)
        if step in stops:
            found.append(copy.deepcopy(net))
    return found


def rate(kernel, docs, share=0.5):
    """A share of 4N/λ of the kernel: half of the rate up to which each step is sure to lower the logistic loss, for 0.25 of it."""
    return share * 4 * len(docs) / float(torch.linalg.eigvalsh(kernel(docs).double()).max())


def own_kernel(net):
    """The network's own initial kernel of documents, from that of single tokens."""
    theta = empirical_ntk(net, torch.arange(net.n_tokens)[:, None]).kernel.double()
    if net.n_outputs == 1:
        theta = theta[:, 0, :, 0]

    def kernel(x1, x2=None):
        a, b = counts(x1, net.n_tokens).double(), counts(x1 if x2 is None else x2, net.n_tokens).double()
        return a @ theta @ b.T if theta.ndim == 2 else torch.einsum("iv,vowp,jw->iojp", a, theta, b)

    return kernel


def closed(net):
    return BagKernel.of(net)
