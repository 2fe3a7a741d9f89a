r"""Random features of a kernel: a short vector for each sample and output, whose inner products estimate the kernel without bias.

A gradient is projected on random matrices of low rank, :math:`P_j = \sum_m a_{jm} b_{jm}^\top / \sqrt{M}` with signs as entries, one
for each parameter and feature. The gradient of a matrix is a sum of outer products :math:`l_t r_t^\top`, so its projection is
:math:`\sum_t (l_t \cdot a)(r_t \cdot b)`, and neither the gradient nor the projection is formed.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.hooks import HookedModel, unwrap
from mechfeat.kernels.contract import CHUNK_BYTES
from mechfeat.kernels.layout import widen
from mechfeat.ntk.capture import Capture
from mechfeat.ntk.checks import check_input, check_model, check_output
from mechfeat.ntk.factors import Dense, Factor, Lookup, Outer, spread
from mechfeat.ntk.fallback import jacobian
from mechfeat.ntk.precision import exact
from mechfeat.ntk.proof import alone, compare, cotangent, proof_samples, reference, tolerances

Kept = Literal["full", "trace", "pseudo"]


@storable
@dataclass(frozen=True, eq=False)
class NTKSketch(Stored):
    """Random features of the empirical tangent kernel.

    Attributes:
        features: One vector for each sample and output. Their inner products estimate the kernel.
        seed: Seed of the projections. Sketches of one model with equal seed, number of features and rank share them.
        rank: Rank of each projection matrix.
    """

    features: Float[Tensor, "n o feature"]
    seed: int
    rank: int

    def kernel(self, other: "NTKSketch | None" = None, *, outputs: Kept = "full") -> Float[Tensor, "..."]:
        """Estimate of the kernel.

        Args:
            other: Sketch of a second batch with the same projections; by default this one.
            outputs: ``"full"``, ``[n o m p]``; ``"trace"``, summed over equal outputs ``[n m]``; ``"pseudo"``, of the sum ``[n m]``.

        Returns:
            The estimate, without bias.

        Raises:
            ShapeError: The sketches have different projections.
            OptionError: ``outputs`` is not known.
        """
        b = self if other is None else other
        if (b.seed, b.rank, b.features.shape[1:]) != (self.seed, self.rank, self.features.shape[1:]):
            raise ShapeError(
                f"The sketches have seeds {self.seed} and {b.seed}, ranks {self.rank} and {b.rank}, and [o, feature] "
                f"{list(self.features.shape[1:])} and {list(b.features.shape[1:])}. Inner products need equal projections: sketch both "
                "batches with the same options."
            )
        F1, F2 = _arranged(self.features, outputs), _arranged(b.features, outputs)
        K = F1 @ F2.T
        return K.view(*self.features.shape[:2], *b.features.shape[:2]) if outputs == "full" else K

    def relative_error(self, *, outputs: Kept = "full") -> float:
        r"""Estimate of the root mean square relative error, :math:`\sqrt{E \|\hatΘ - Θ\|^2} / \|Θ\|` in the Frobenius norm.

        Each feature alone estimates the kernel, independently of the others, so that the variance of their mean follows from their spread.

        Args:
            outputs: As for :meth:`kernel`.

        Returns:
            The error, dimensionless; infinite where it hides the kernel, and NaN for a single feature.
        """
        r = self.features.shape[-1]
        if r < 2:
            return math.nan
        columns = self.features.double().sum(1, keepdim=True) if outputs == "pseudo" else self.features.double()
        if outputs == "full":
            each = columns.square().sum((0, 1)).square().sum()
        else:  # ‖Φ_j Φ_jᵀ‖ for the matrix [n o] of a feature, through the smaller [o o]
            each = sum((c.T @ c).square().sum() for c in columns.unbind(-1))  # type: ignore[assignment]
        F = _arranged(self.features.double(), outputs)
        total = float((F @ F.T if F.shape[0] <= F.shape[1] else F.T @ F).square().sum())
        error = (r * float(each) - total) / (r - 1)
        return math.sqrt(max(error, 0.0) / (total - error)) if total > error else (0.0 if error <= 0 else math.inf)

    def error_bound(self, confidence: float = 0.95, *, outputs: Kept = "full") -> float:
        r"""Bound of the relative error that holds with a confidence, by Markov's inequality for the squared error.

        Args:
            confidence: Between 0 and 1.
            outputs: As for :meth:`kernel`.

        Returns:
            :meth:`relative_error` divided by :math:`\sqrt{1 - c}`. It takes that estimate for the expectation.

        Raises:
            OptionError: ``confidence`` is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise OptionError("confidence", confidence, ("a number between 0 and 1",))
        return self.relative_error(outputs=outputs) / math.sqrt(1 - confidence)


def sketch(
    model: nn.Module | HookedModel, x: Tensor, *, n_features: int = 1024, rank: int = 4, seed: int = 0, chunk_size: int = 64
) -> NTKSketch:
    r"""Random features of the empirical tangent kernel.

    .. math:: φ_{no,j} = \frac{1}{\sqrt{r}} \sum_θ \Big\langle \frac{∂ f_o(x_n)}{∂θ}, P_{θj} \Big\rangle, \qquad
              E\, φ_{no} \cdot φ_{mp} = Θ_{no,mp}

    Args:
        model: The model, in the mode it shall be used in.
        x: A batch.
        n_features: r. The error falls with its square root.
        rank: Rank of each projection matrix. With 1 the error is up to some times that of a dense projection, to which it tends with the
            rank; time grows with it.
        seed: Seed of the projections, drawn on the CPU, so that devices agree.
        chunk_size: Samples run at once.

    Returns:
        The features, with an estimate of their error. Half precision gives float32.

    Raises:
        ShapeError: A number is not positive.

    What :func:`empirical_ntk` refuses is refused here as well. Every parameter's features are proved on the first chunk of each size: a
    random combination of them is the projection of that combination of the gradients, which one ordinary backward pass gives. A
    parameter whose rule fails takes autograd.

    Cost:
        ``n o t (c + k) r · rank`` multiply-adds for a matrix ``[c k]`` used at t positions, and no n². Parameters that no rule covers take
        autograd, and ``n o p`` numbers in a chunk.

    Source:
        Johnson & Lindenstrauss 1984; Achlioptas 2003, *Database-friendly random projections* (signs).

    Example:
        >>> x = torch.eye(3, 4)
        >>> found = sketch(nn.Linear(4, 1, bias=False), x, n_features=4096)
        >>> bool((found.kernel(outputs="trace") - x @ x.T).norm() / 3**0.5 <= found.error_bound(0.99, outputs="trace"))
        True
    """
    if n_features < 1 or rank < 1 or chunk_size < 1:
        raise ShapeError(f"n_features={n_features}, rank={rank} and chunk_size={chunk_size}: each must be at least 1.")
    module = unwrap(model)
    parameters = check_model(module)
    one = next(iter(parameters.values()))
    x = check_input(x, "x", one)
    projections = {
        name: _Projection(p, n_features, rank, torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**63))
        for i, (name, p) in enumerate(parameters.items())
    }
    parts: list[Tensor] = []
    banned: dict[str, str] = {}
    proved: set[int] = set()
    with torch.inference_mode(False), exact(module):
        for i, part in enumerate(x.split(chunk_size)):
            v = None if len(part) in proved else torch.Generator().manual_seed(seed)
            features, y, failed = _features(module, part, projections, banned, v)
            if failed:
                banned |= failed
                features, y, _ = _features(module, part, projections, banned, None)
            proved.add(len(part))  # an axis of the model may be as long as this chunk, and not as long as others
            if not i:
                few = proof_samples(len(part), torch.Generator().manual_seed(seed))
                with torch.no_grad():
                    compare(module, part[few], check_output(module(part[few].clone()), len(few), "x"), y[few])
                alone(module, part, y)
            parts.append(features)
    return NTKSketch(torch.cat(parts) / math.sqrt(n_features), seed, rank)


def _features(
    module: nn.Module, x: Tensor, projections: dict[str, "_Projection"], banned: dict[str, str], prove: torch.Generator | None
) -> tuple[Float[Tensor, "n o feature"], Float[Tensor, "n o"], dict[str, str]]:
    """Features of a chunk, before their scale; the outputs; and parameters whose rules were wrong, with the reason.

    The projection of a random combination of all gradients is that combination of the features, parameter by parameter, and one ordinary
    backward pass gives it.
    """
    capture = Capture(module, len(x), banned)
    y = check_output(capture.forward(x), len(x), "x")
    capture.find_hidden(y)
    values = y.detach()
    r = next(iter(projections.values())).a.shape[-1]
    features = widen(values).new_zeros(*y.shape, r)
    v = None if prove is None else cotangent(len(values), values.shape[1], values, prove)
    sums: dict[str, Tensor] = {}

    def add(name: str, factors: list[Factor]) -> None:
        p = projections[name]
        room = features if v is None else torch.zeros_like(features)
        for factor in factors:
            p.add(room, factor if factor.place is None else Dense(spread(factor, slice(0, p.rows), p.rows)))
        if v is not None:
            features.add_(room)
            sums[name] = einsum(widen(v), room, "n o, n o feature -> feature")

    capture.backward(y, add)
    o = y.shape[1]
    del y
    for name, J in jacobian(module, x, list(capture.unfit), o).items() if capture.unfit else ():
        add(name, [Dense(J.view(*J.shape[:2], *module.get_parameter(name).shape))])
    return features, values, {} if v is None else _wrong(module, x, v, values, sums, projections)


def _wrong(
    module: nn.Module,
    x: Tensor,
    v: Float[Tensor, "n o"],
    y: Float[Tensor, "n o"],
    sums: dict[str, Tensor],
    projections: dict[str, "_Projection"],
) -> dict[str, str]:
    side = reference(module, x, v, expect=y)
    relative, absolute = tolerances(y.dtype)
    sizes = {name: float(g.double().norm()) for name, g in side.gradients.items()}
    found = {}
    for name, p in projections.items():
        want = torch.zeros(1, 1, p.a.shape[-1], dtype=p.a.dtype, device=p.a.device)
        if name in side.gradients:
            p.add(want, Dense(side.gradients[name][None, None]))
        gap = float((sums.get(name, 0.0) - want[0, 0]).norm()) / p.a.shape[-1] ** 0.5
        size = sizes.get(name, 0.0)
        if not gap <= relative * size + absolute * sum(sizes.values()):  # NaN fails
            found[name] = f"its rule failed the proof (relative gap {gap / size if size else math.inf:.1e})"
    return found


class _Projection:
    """Random matrices of low rank in the shape of a parameter: its first axis, and the others as one."""

    def __init__(self, p: Tensor, n_features: int, rank: int, generator: torch.Generator) -> None:
        self.rows = len(p) if p.ndim else 1
        rows, columns = (len(p), p[0].numel()) if p.ndim > 1 else (p.numel(), 1)
        like = widen(torch.empty(0, dtype=p.dtype, device=p.device))
        # A vector takes one dense projection: with one column, a sum of signs would only be noisier.
        self.rank = rank if columns > 1 else 1
        self.a, self.b = (
            (torch.randint(0, 2, (self.rank, size, n_features), generator=generator, dtype=torch.int8, device="cpu") * 2 - 1).to(like)
            for size in (rows, columns)
        )

    def add(self, features: Float[Tensor, "n o feature"], factor: Factor) -> None:
        """Add the projections of a factor to the features."""
        n, o, r = features.shape
        positions = 1 if isinstance(factor, Dense) else factor.left.shape[2]
        width = self.a.shape[1] if isinstance(factor, Dense) else 2 * positions
        step = max(1, CHUNK_BYTES // max(1, n * o * width * features.element_size()))
        if isinstance(factor, Outer):
            factor = replace(factor, right=factor.inputs)  # patches are formed once
        for m in range(self.rank):
            for j in range(0, r, step):
                a, b = self.a[m, :, j : j + step], self.b[m, :, j : j + step]
                features[..., j : j + step] += self._project(factor, a, b) / math.sqrt(self.rank)

    @staticmethod
    def _project(factor: Factor, a: Float[Tensor, "row feature"], b: Float[Tensor, "column feature"]) -> Float[Tensor, "n o feature"]:
        if isinstance(factor, Dense):
            g = widen(factor.gradient).reshape(*factor.gradient.shape[:2], len(a), len(b))
            return ((g @ b) * a).sum(2)
        left = widen(factor.left)
        if isinstance(factor, Lookup):
            return ((left @ b) * a[factor.ids][:, None]).sum(2)
        assert isinstance(factor, Outer)
        right = widen(factor.inputs)
        L, R = (left @ b, right @ a) if factor.turned else (left @ a, right @ b)
        return (L * R[:, None]).sum(2)


def _arranged(features: Tensor, outputs: str) -> Float[Tensor, "row column"]:
    if outputs not in ("full", "trace", "pseudo"):
        raise OptionError("outputs", outputs, ("full", "trace", "pseudo"))
    return features.flatten(0, 1) if outputs == "full" else features.flatten(1) if outputs == "trace" else features.sum(1)
