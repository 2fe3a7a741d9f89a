"""Training of a sparse linear model on a loss of its outputs: what :class:`~mechfeat.ntk.KernelDynamics` computes, without the kernel."""

from collections.abc import Callable, Sequence
from typing import Any

from mechfeat.errors import NonFiniteError
from mechfeat.ntk.dynamics_losses import Loss


def train_sparse(
    X: Any, Y: Any, stops: Sequence[int | float], *, loss: Loss, rate: float, flow: bool, tolerance: float = 1e-8
) -> list[Any]:
    r"""Parameters θ of ``f = X θ`` after gradient descent or gradient flow from zero.

    .. math:: θ_{t+1} = θ_t - η\, X^\top g(X θ_t)

    Args:
        X: Features, ``[n feature]`` in CSR form.
        Y: Targets as :func:`~mechfeat.ntk.dynamics_losses.targets` gives them, ``[n draw o]``; each draw is a training of its own.
        stops: Steps, or times, at which parameters are wanted.
        loss: The loss.
        rate: Learning rate η of the sum over samples.
        flow: Gradient flow rather than descent.
        tolerance: Error allowed to a step of the solver of the flow, as in :class:`~mechfeat.ntk.KernelDynamics`.

    Returns:
        ``[feature draw o]`` for each stop.

    Raises:
        NonFiniteError: The flow was not solved.

    Cost:
        O(non-zeros · draws · outputs) a step.
    """
    import numpy as np

    n, draws, o = Y.shape
    XT = X.T.tocsr()
    flat = Y.reshape(n, draws * o)
    slope = _slope(loss, draws, o)

    def velocity(theta: Any) -> Any:
        return -rate * (XT @ slope(X @ theta, flat))

    shape = (X.shape[1], draws * o)
    if flow:
        found = _flowed(velocity, shape, stops, tolerance, _top(X))
    else:
        theta, found = np.zeros(shape), {}
        for step in range(int(max(stops)) + 1):
            if step in stops:
                found[float(step)] = theta.copy()
            if step < max(stops):
                theta += velocity(theta)
    return [found[float(t)].reshape(-1, draws, o) for t in stops]


def largest_eigenvalue(X: Any) -> float:
    """Largest eigenvalue of ``X Xᵀ``.

    Args:
        X: Features, ``[n feature]`` in CSR form.

    Returns:
        It, to 1e-10 relative; 0 for a matrix of zeros.
    """
    return _top(X) ** 2


def _top(X: Any) -> float:
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, eigsh

    if not X.nnz or not abs(X).max():
        return 0.0
    small = min(X.shape)
    if small <= 2:
        dense = (X if X.shape[0] <= X.shape[1] else X.T).toarray()
        return float(np.linalg.norm(dense, 2))
    left = X if X.shape[0] == small else X.T.tocsr()
    right = left.T.tocsr()
    gram = LinearOperator((small, small), matvec=lambda v: left @ (right @ v), dtype=np.float64)
    # Features and their weights are not negative, so the leading eigenvector is not either, and all ones has a part along it.
    return float(np.sqrt(eigsh(gram, k=1, which="LA", v0=np.ones(small), tol=1e-10, return_eigenvectors=False)[0]))


def _slope(loss: Loss, draws: int, o: int) -> Callable[[Any, Any], Any]:
    from scipy.special import expit

    def softmax_slope(f: Any, Y: Any) -> Any:
        import numpy as np

        f = f.reshape(-1, draws, o)
        e = np.exp(f - f.max(-1, keepdims=True))
        return (e / e.sum(-1, keepdims=True)).reshape(len(Y), -1) - Y

    return {
        "squared": lambda f, Y: f - Y,
        "logistic": lambda f, Y: -Y * expit(-Y * f),
        "softmax": softmax_slope,
    }[loss]


def _flowed(
    velocity: Callable[[Any], Any], shape: tuple[int, int], stops: Sequence[int | float], tolerance: float, top: float
) -> dict[float, Any]:
    import numpy as np
    from scipy.integrate import solve_ivp

    last = float(max(stops))
    if not last or not top:
        return {float(t): np.zeros(shape) for t in stops}
    # In units of the largest singular value an error in the parameters bounds that in the outputs.
    solved = solve_ivp(
        lambda _, beta: top * velocity(beta.reshape(shape) / top).ravel(),
        (0.0, last),
        np.zeros(shape[0] * shape[1]),
        method="DOP853",
        t_eval=sorted({float(t) for t in stops}),
        rtol=max(tolerance, 1e-13),
        atol=tolerance,
    )
    if not solved.success:
        raise NonFiniteError(f"Gradient flow was not solved up to t={last:g}: {solved.message}")
    return {float(t): solved.y[:, i].reshape(shape) / top for i, t in enumerate(solved.t)}
