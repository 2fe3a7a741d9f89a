"""Eigenvalues, their density and linear systems of a symmetric matrix that is known by its products alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.features import storable
from mechfeat.features.storage import Stored

Product = Callable[[Float[Tensor, " row"]], Float[Tensor, " row"]]


@storable
@dataclass(frozen=True, eq=False)
class Eigenpairs(Stored):
    """Extreme eigenvalues of a symmetric matrix.

    Attributes:
        values: Eigenvalues, from the end that was asked for inwards.
        vectors: Their eigenvectors, of length 1.
        residuals: ``‖Θu − λu‖`` of each, computed with one more product: an eigenvalue lies within this distance of ``values``.
        products: Number of products with the matrix.
        converged: Whether every residual is within the tolerance.
    """

    values: Float[Tensor, " eigenvalue"]
    vectors: Float[Tensor, "row eigenvalue"]
    residuals: Float[Tensor, " eigenvalue"]
    products: int
    converged: bool


@storable
@dataclass(frozen=True, eq=False)
class SpectralDensity(Stored):
    r"""Density of eigenvalues, as weights at nodes: :math:`\sum_i w_i f(t_i)` estimates the mean of ``f`` over the eigenvalues.

    Attributes:
        nodes: Places, one row a probe.
        weights: Shares, which sum to 1 over all probes.
    """

    nodes: Float[Tensor, "probe step"]
    weights: Float[Tensor, "probe step"]

    def mean(self, f: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Estimate the mean of a function over all eigenvalues.

        Args:
            f: The function, entry by entry.

        Returns:
            The estimate, and its standard error over probes: NaN for a single one. Without bias for polynomials of degree below
            twice the number of steps.
        """
        each = (self.weights * f(self.nodes)).sum(1) * len(self.nodes)
        return float(each.mean()), float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan

    def smoothed(self, points: Float[Tensor, " point"], width: float) -> Float[Tensor, " point"]:
        """The density, each node spread to a normal distribution.

        Args:
            points: Where to evaluate it.
            width: Standard deviation, in units of the eigenvalues.

        Returns:
            Density at the points, which integrates to 1 over the line.
        """
        z = (points[:, None, None] - self.nodes) / width
        return ((-z.square() / 2).exp() * self.weights).sum((1, 2)) / (width * math.sqrt(2 * math.pi))


@storable
@dataclass(frozen=True, eq=False)
class Solution(Stored):
    """Solution of a linear system, with what is left over.

    Attributes:
        x: The solution, of the shape of the right-hand side.
        residual: ``‖b − (Θ + ridge) x‖ / ‖b‖``, computed at the end with one more product; the largest over columns.
        history: The recursion's own relative residual after each step, of the column that took most.
        steps: Steps of that column.
        converged: Whether ``residual`` is within the tolerance.
        ridge: What was added to the diagonal.
    """

    x: Float[Tensor, "..."]
    residual: float
    history: tuple[float, ...]
    steps: int
    converged: bool
    ridge: float


def tridiagonal(
    product: Product, start: Float[Tensor, " row"], steps: int, beside: Float[Tensor, "row locked"]
) -> tuple[Float[Tensor, "row step"], Float[Tensor, "step step"]]:
    """Lanczos tridiagonalisation with full reorthogonalisation.

    Args:
        product: The matrix.
        start: Start vector.
        steps: Steps at most; fewer where an invariant subspace has been reached.
        beside: Orthonormal columns that the basis is kept orthogonal to.

    Returns:
        Orthonormal basis and the matrix in it.

    Source:
        Lanczos 1950, *An iteration method for the solution of the eigenvalue problem*; Golub & Van Loan 2013, *Matrix Computations*,
        section 10.3.5, for reorthogonalising.
    """
    Q = torch.cat([beside, start.new_empty(len(start), steps)], 1)
    first, eps = beside.shape[1], torch.finfo(start.dtype).eps
    alpha: list[float] = []
    beta: list[float] = []
    q, scale = _orthogonal(start, beside), 0.0
    q = q / q.norm()
    for j in range(steps):
        Q[:, first + j] = q
        w = product(q)
        alpha.append(float(q @ w))
        w = _orthogonal(w, Q[:, : first + j + 1])
        scale = max(scale, abs(alpha[-1]), *beta, 0.0)
        norm = float(w.norm())
        if j + 1 == steps or norm <= 10 * eps * len(start) ** 0.5 * scale or scale == 0.0:
            break
        beta.append(norm)
        q = w / norm
    T = torch.diag(start.new_tensor(alpha))
    if len(alpha) > 1:
        off = start.new_tensor(beta[: len(alpha) - 1])
        T = T + torch.diag(off, 1) + torch.diag(off, -1)
    return Q[:, first : first + len(alpha)], T


def extreme(
    product: Product, size: int, k: int, *, smallest: bool, generator: torch.Generator, like: Tensor, tolerance: float, max_products: int
) -> Eigenpairs:
    """The ``k`` largest or smallest eigenvalues, copies included.

    One Krylov space holds a single vector of each eigenspace, so an eigenvalue that occurs twice would be found once. Runs are repeated in
    the complement of what has been found, until one of them finds nothing further out.

    Args:
        product: The matrix.
        size: Its number of rows.
        k: How many.
        smallest: Take the other end.
        generator: Source of start vectors, on the CPU.
        like: Gives dtype and device.
        tolerance: Residual of a converged pair, relative to the largest eigenvalue in absolute value.
        max_products: Products at most.

    Returns:
        The pairs.
    """
    sign, count = (-1.0 if smallest else 1.0), 0

    def counted(v: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return sign * product(v)

    locked, values, scale = like.new_empty(size, 0), like.new_empty(0), 0.0
    while locked.shape[1] < size and count < max_products:
        steps = min(size - locked.shape[1], max(2 * k + 10, 20))
        start, found = _start(size, generator, like), False
        while True:  # one run, restarted with more steps where its outermost pair has not converged
            Q, T = tridiagonal(counted, start, min(steps, max(1, max_products - count)), locked)
            theta, S = torch.linalg.eigh(T)
            theta, S = theta.flip(0), S.flip(1)
            scale = max(scale, float(theta.abs().max()))
            U = Q @ S[:, : min(k, len(theta))]
            theta = theta[: U.shape[1]]
            # The last entries of S bound the residual only while the recursion goes on, so it is computed for the outermost pair.
            outer = float((counted(U[:, 0]) - theta[0] * U[:, 0]).norm())
            found = outer <= tolerance * scale or T.shape[0] == size - locked.shape[1]
            if found or count >= max_products or steps >= size - locked.shape[1]:
                break
            steps = min(2 * steps, size - locked.shape[1])
        if values.numel() >= k and found and float(theta[0]) <= float(values[k - 1]) + tolerance * scale:
            break
        residuals = [float((counted(u) - t * u).norm()) for t, u in zip(theta, U.T)]
        good = [i for i, r in enumerate(residuals) if r <= tolerance * scale]
        chosen = good or ([0] if count >= max_products else [])
        if not chosen:
            break
        locked = torch.cat([locked, _orthonormal(U[:, chosen], locked)], 1)
        values, order = torch.cat([values, theta[chosen]]).sort(descending=True)
        locked = locked[:, order]
    U = locked[:, :k]
    # Found in separate runs, close pairs may still mix: the matrix in their space is diagonalised once more.
    images = torch.stack([counted(u) for u in U.T], 1) if U.shape[1] else U
    theta, S = torch.linalg.eigh((U.T @ images + images.T @ U) / 2)
    theta, S = theta.flip(0), S.flip(1)
    residuals_ = (images @ S - (U @ S) * theta).norm(dim=0)
    converged = U.shape[1] == min(k, size) and bool((residuals_ <= 10 * tolerance * scale).all()) and count <= max_products + 2 * k
    return Eigenpairs(sign * theta, U @ S, residuals_, count, converged)


def density(product: Product, size: int, *, n_probes: int, steps: int, generator: torch.Generator, like: Tensor) -> SpectralDensity:
    """Stochastic Lanczos quadrature.

    Args:
        product: The matrix.
        size: Its number of rows.
        n_probes: Random start vectors.
        steps: Lanczos steps of each.
        generator: Source of the vectors, on the CPU.
        like: Gives dtype and device.

    Returns:
        Nodes and weights.

    Source:
        Ubaru, Chen & Saad 2017, *Fast estimation of tr(f(A)) via stochastic Lanczos quadrature*.
    """
    nodes, weights = like.new_zeros(n_probes, steps), like.new_zeros(n_probes, steps)
    for i in range(n_probes):
        start = torch.randint(0, 2, (size,), generator=generator, device="cpu").to(like) * 2 - 1
        _, T = tridiagonal(product, start, steps, like.new_empty(size, 0))
        theta, S = torch.linalg.eigh(T)
        nodes[i, : len(theta)], weights[i, : len(theta)] = theta, S[0].square() / n_probes
    return SpectralDensity(nodes, weights)


def conjugate_gradients(
    product: Product, b: Float[Tensor, " row"], *, tolerance: float, max_steps: int
) -> tuple[Float[Tensor, " row"], list[float]]:
    """Solve a positive definite system.

    Args:
        product: The matrix.
        b: Right-hand side.
        tolerance: Relative residual to stop at.
        max_steps: Steps at most.

    Returns:
        Solution, and relative residuals of the recursion. It stops early where a direction has no positive curvature.

    Source:
        Hestenes & Stiefel 1952, *Methods of conjugate gradients for solving linear systems*.
    """
    x, r = torch.zeros_like(b), b.clone()
    p, rr, norm = r.clone(), float(b @ b), float(b.norm())
    history: list[float] = []
    while norm and len(history) < max_steps and math.sqrt(rr) > tolerance * norm:
        q = product(p)
        curvature = float(p @ q)
        if not curvature > 0:
            break
        step = rr / curvature
        x, r = x + step * p, r - step * q
        rr, last = float(r @ r), rr
        p = r + (rr / last) * p
        history.append(math.sqrt(rr) / norm)
    return x, history


def _start(size: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").to(like)


def _orthogonal(w: Tensor, Q: Tensor) -> Tensor:
    for _ in range(2):  # twice is enough (Giraud, Langou & Rozložník 2005)
        w = w - Q @ (Q.T @ w)
    return w


def _orthonormal(U: Tensor, beside: Tensor) -> Tensor:
    columns = beside
    for u in U.T:
        u = _orthogonal(u, columns)
        columns = torch.cat([columns, (u / u.norm())[:, None]], 1)
    return columns[:, beside.shape[1] :]
