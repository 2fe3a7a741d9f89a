"""The kernel as an operator: products with it, and what follows from products, without ever forming it.

``Θ v = J₁ (J₂ᵀ v)`` takes one backward pass over x2 and one forward-mode pass over x1. For many samples and few vectors (leading
eigenvalues, one linear system) this is all that is needed, and memory does not grow with n².
"""

import copy
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import DeviceError, DtypeError, NonFiniteError, OptionError, ShapeError
from mechfeat.hooks import HookedModel, unwrap
from mechfeat.kernels.layout import widen
from mechfeat.ntk.capture import trainable
from mechfeat.ntk.checks import check_input, check_model
from mechfeat.ntk.empirical import empirical_ntk
from mechfeat.ntk.krylov import Eigenpairs, Solution, SpectralDensity, conjugate_gradients, density, extreme
from mechfeat.ntk.tangent import WAYS, pull, verify
from mechfeat.nulls.generators import as_generator

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Kept = Literal["full", "trace", "pseudo"]
_KEPT = ("full", "trace", "pseudo")


class NTKOperator:
    r"""The empirical tangent kernel by its products with vectors.

    .. math:: Θ v = J(x_1) \, J(x_2)^\top v

    Rows are samples × outputs for ``full``, flattened with outputs last, and samples otherwise. The operator follows the model: products
    use the weights, the mode and the edits of the moment. When it is made, and again after a change of mode or of what is frozen, four
    samples are checked as :func:`empirical_ntk` checks them, and the forward-mode derivative on each batch against a backward pass.

    Args:
        model: The model, in the mode it shall be used in.
        x1: A batch, samples along the first axis.
        x2: Another batch; by default ``x1`` itself.
        outputs: ``"full"``; ``"trace"`` for the sum over equal outputs, which costs a product of ``full`` for each output; ``"pseudo"``
            for the kernel of the summed outputs.
        chunk_size: Samples run at once. Memory grows with it, and the result does not depend on it beyond rounding.
        seed: Seed of the check's samples and directions.

    Attributes:
        shape: Rows and columns.
        n_outputs: Outputs of the model, flattened.
        way: How products with the Jacobian are computed: ``"forward"`` mode or ``"double backward"``.

    Raises:
        OptionError: ``outputs`` is not known. ``"diagonal"`` is one operator for each output.
        ShapeError: ``chunk_size`` is not positive, or the batches give different numbers of outputs.

    What :func:`empirical_ntk` refuses is refused here as well.

    Cost:
        One product is a forward and a backward pass over x2 and a forward-mode pass over x1, about five forward passes. The
        check when it is made costs as much for each batch.

    Source:
        Novak et al. 2022, *Fast Finite Width Neural Tangent Kernel*, section 3.2 (NTK-vector products).

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> op = NTKOperator(net, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        >>> op @ torch.tensor([1.0, -1.0])
        tensor([ 0., -1.])
    """

    def __init__(
        self,
        model: nn.Module | HookedModel,
        x1: Tensor,
        x2: Tensor | None = None,
        *,
        outputs: Kept = "full",
        chunk_size: int = 256,
        seed: int = 0,
    ) -> None:
        if outputs not in _KEPT:
            raise OptionError("outputs", outputs, _KEPT)
        if chunk_size < 1:
            raise ShapeError(f"chunk_size={chunk_size} runs no samples. It must be at least 1.")
        self._module = unwrap(model)
        one = next(iter(check_model(self._module).values()))
        x1 = check_input(x1, "x1", one)
        self._xs = (x1, x1) if x2 is None else (x1, check_input(x2, "x2", one))
        self._same = x2 is None
        self.outputs, self.chunk_size, self._seed = outputs, chunk_size, seed
        self._verified: object = None
        self._verify()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        each = self.n_outputs if self.outputs == "full" else 1
        return len(self._xs[0]) * each, len(self._xs[1]) * each

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of products: that of the model, float32 for half precision."""
        return widen(torch.empty(0, dtype=self._one().dtype)).dtype

    @property
    def T(self) -> "NTKOperator":
        """The transpose, x1 and x2 exchanged."""
        other = copy.copy(self)
        other._xs = self._xs[::-1]
        return other

    def __matmul__(self, v: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Θ v.

        Args:
            v: ``[column]``, or ``[column k]`` for k products; for ``full`` also ``[n2 o]``.

        Returns:
            The product, in the layout of ``v``.

        Raises:
            ShapeError: The first axis does not fit.
            DtypeError: It is not floating-point.
            DeviceError: It is on another device than the model.
            NonFiniteError: It holds NaN or infinity.
        """
        self._verify()
        V, layout = self._columns(v)
        with torch.inference_mode(False):
            out = torch.stack([self._product(column) for column in V.unbind(1)], 1) if V.shape[1] else V.new_empty(self.shape[0], 0)
        if layout == "vector":
            return out[:, 0]
        return out.reshape(len(self._xs[0]), -1) if layout == "samples" else out

    def diagonal(self) -> Float[Tensor, " row"]:
        """Diagonal of the kernel of a batch with itself, exact: a few samples at a time, by :func:`empirical_ntk`.

        Returns:
            One number a row.

        Raises:
            ShapeError: The operator is between two batches.
        """
        self._square("A diagonal")
        kept: Literal["diagonal", "trace", "pseudo"] = "diagonal" if self.outputs == "full" else self.outputs
        step, parts = min(16, self.chunk_size), []
        for i in range(0, len(self._xs[0]), step):
            kernel = empirical_ntk(self._module, self._xs[0][i : i + step], outputs=kept, seed=self._seed).kernel
            parts.append(kernel.diagonal(dim1=0, dim2=1).T.reshape(-1) if self.outputs == "full" else kernel.diagonal())
        return torch.cat(parts)

    def eigenvalues(
        self,
        k: int = 6,
        *,
        which: Literal["largest", "smallest"] = "largest",
        generator: torch.Generator,
        tolerance: float | None = None,
        max_products: int = 2000,
    ) -> Eigenpairs:
        """Extreme eigenvalues by Lanczos with full reorthogonalisation; eigenvalues that occur several times are found as often.

        Args:
            k: How many.
            which: From which end.
            generator: Source of start vectors.
            tolerance: Residual of a converged pair, relative to the largest eigenvalue; by default 1e-10 in float64, 1e-5 in float32.
            max_products: Products with the kernel at most, but for those of the final residuals.

        Returns:
            The pairs with their residuals; ``converged`` says whether the tolerance was reached.

        Raises:
            ShapeError: The operator is between two batches, or has fewer than ``k`` rows.
            OptionError: ``which`` is not known.

        Cost:
            A multiple of k products; the basis holds a vector for each.

        Source:
            Lanczos 1950, *An iteration method for the solution of the eigenvalue problem of linear differential and integral operators*.

        Example:
            >>> op = NTKOperator(nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
            >>> op.eigenvalues(2, generator=torch.Generator().manual_seed(0)).values.round(decimals=4)
            tensor([9., 2.])
        """
        size = self._square("Eigenvalues")
        if which not in ("largest", "smallest"):
            raise OptionError("which", which, ("largest", "smallest"))
        if not 1 <= k <= size:
            raise ShapeError(f"k={k} eigenvalues of a kernel with {size} rows do not exist. Ask for 1 to {size}.")
        return extreme(
            self.__matmul__,
            size,
            k,
            smallest=which == "smallest",
            generator=as_generator(generator),
            like=self._like(),
            tolerance=self._tolerance(tolerance),
            max_products=max_products,
        )

    def spectral_density(self, *, n_probes: int = 10, steps: int = 30, generator: torch.Generator) -> SpectralDensity:
        """Density of all eigenvalues, by stochastic Lanczos quadrature.

        Args:
            n_probes: Random vectors; the error falls with the square root of their number.
            steps: Products for each, which is the number of nodes.
            generator: Source of the vectors.

        Returns:
            Nodes and weights, from which means over eigenvalues follow with their standard errors.

        Raises:
            ShapeError: The operator is between two batches, or a number is not positive.

        Source:
            Ubaru, Chen & Saad 2017, *Fast estimation of tr(f(A)) via stochastic Lanczos quadrature*.
        """
        size = self._square("A density of eigenvalues")
        if n_probes < 1 or steps < 1:
            raise ShapeError(f"n_probes={n_probes} and steps={steps}: both count vectors, and at least one of each is needed.")
        like = self._like()
        return density(self.__matmul__, size, n_probes=n_probes, steps=min(steps, size), generator=as_generator(generator), like=like)

    def solve(
        self, b: Float[Tensor, "..."], *, ridge: float = 0.0, tolerance: float | None = None, max_steps: int | None = None
    ) -> Solution:
        r"""Solve :math:`(Θ + λ I) x = b` by conjugate gradients.

        Args:
            b: Right-hand side, in the layouts of ``@``; columns are solved one by one.
            ridge: λ. A kernel with more rows than parameters is singular without one.
            tolerance: Relative residual to stop at; by default 1e-10 in float64, 1e-5 in float32.
            max_steps: Steps for each column at most; by default ten times the number of rows.

        Returns:
            The solution, its true residual, and whether that is within the tolerance.

        Raises:
            ShapeError: The operator is between two batches, or ``b`` does not fit.
            OptionError: ``ridge`` is negative or not finite.

        Source:
            Hestenes & Stiefel 1952, *Methods of conjugate gradients for solving linear systems*.

        Example:
            >>> op = NTKOperator(nn.Linear(2, 1, bias=False), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
            >>> op.solve(torch.tensor([1.0, 4.0]), ridge=1.0).x
            tensor([0.2000, 2.0000])
        """
        size = self._square("A linear system")
        if not 0 <= ridge < float("inf"):
            raise OptionError("ridge", ridge, ("a number of at least 0",))
        B, layout = self._columns(b)
        limit, steps = self._tolerance(tolerance), 10 * size if max_steps is None else max_steps

        def product(v: Tensor) -> Tensor:
            return (self @ v) + ridge * v

        xs: list[Tensor] = []
        worst, longest = 0.0, list[float]()
        for column in B.unbind(1):
            # The recursion is stopped a little below the tolerance, since the true residual drifts from it.
            x, history = conjugate_gradients(product, column, tolerance=limit / 2, max_steps=steps)
            norm = float(column.norm())
            worst = max(worst, float((column - product(x)).norm()) / norm if norm else 0.0)
            longest = max(longest, history, key=len)
            xs.append(x)
        X = torch.stack(xs, 1) if xs else B
        X = X[:, 0] if layout == "vector" else X.reshape(len(self._xs[0]), -1) if layout == "samples" else X
        return Solution(X, worst, tuple(longest), len(longest), worst <= limit, ridge)

    def as_scipy(self) -> "LinearOperator":
        """A view for SciPy: ``eigsh``, ``cg``, ``svds`` and others take it.

        Returns:
            A ``scipy.sparse.linalg.LinearOperator`` with products and transposed products, on NumPy arrays.
        """
        from scipy.sparse.linalg import LinearOperator

        def products(op: NTKOperator) -> Any:
            one = self._one()
            return lambda v: (op @ torch.from_numpy(v.copy()).to(one.device, op.dtype)).cpu().numpy()

        mine, theirs = products(self), products(self.T)
        numpy_dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        flat = [lambda v, f=f: f(v.reshape(-1)) for f in (mine, theirs)]
        return LinearOperator(self.shape, matvec=flat[0], rmatvec=flat[1], matmat=mine, rmatmat=theirs, dtype=numpy_dtype)

    # --- products

    def _product(self, v: Float[Tensor, " column"]) -> Float[Tensor, " row"]:
        o = self.n_outputs
        if self.outputs == "full":
            return self._full(v.view(-1, o)).reshape(-1)
        if self.outputs == "pseudo":
            return self._full(v[:, None].expand(-1, o)).sum(1)
        out = v.new_zeros(self.shape[0])
        for i in range(o):
            u = v.new_zeros(len(v), o)
            u[:, i] = v
            out += self._full(u)[:, i]
        return out

    def _full(self, u: Float[Tensor, "m o"]) -> Float[Tensor, "n o"]:
        x1, x2 = self._xs
        step, dtype = self.chunk_size, self._one().dtype
        total: dict[str, Tensor] = {}
        for i in range(0, len(x2), step):
            for name, g in pull(self._module, x2[i : i + step], u[i : i + step].to(dtype)).items():
                # summed in float32 where the model is in half precision
                total[name] = total[name] + g if name in total else widen(g)
        direction = {name: g.to(dtype) for name, g in total.items()}
        push = WAYS[self.way]
        return widen(torch.cat([push(self._module, x1[i : i + step], direction) for i in range(0, len(x1), step)]))

    # --- checks

    def _verify(self) -> None:
        state = tuple(m.training for m in self._module.modules()), tuple(trainable(self._module))
        if state == self._verified:
            return
        check_model(self._module)
        with torch.inference_mode(False):
            found = [
                verify(self._module, x, f"x{i + 1}", self._seed, self.chunk_size) for i, x in enumerate(self._xs[: 1 if self._same else 2])
            ]
        if len({o for o, _ in found}) > 1:
            raise ShapeError(
                f"The model gives {found[0][0]} outputs a sample for x1 and {found[1][0]} for x2. A kernel between them "
                "needs the same outputs."
            )
        self.n_outputs = found[0][0]
        self.way = next((way for _, way in found if way != "forward"), "forward")
        self._verified = state

    def _square(self, what: str) -> int:
        if not self._same:
            raise ShapeError(f"{what} needs the kernel of a batch with itself; this operator is between x1 and x2. Make it without x2.")
        return self.shape[0]

    def _columns(self, v: Any) -> tuple[Tensor, str]:
        n, o, size = len(self._xs[1]), self.n_outputs, self.shape[1]
        if not isinstance(v, Tensor) or not v.is_floating_point():
            found = v.dtype if isinstance(v, Tensor) else type(v).__name__
            raise DtypeError(f"The vector is of {found}. A product with a kernel needs a floating tensor.")
        fits = v.ndim in (1, 2) and v.shape[0] == size
        samples = self.outputs == "full" and tuple(v.shape) == (n, o)
        if not fits and not samples:
            also = f" or [{n}, {o}]" if self.outputs == "full" else ""
            raise ShapeError(f"The vector has shape {list(v.shape)}, and this kernel has {size} columns. Give [{size}], [{size}, k]{also}.")
        one = self._one()
        if v.device != one.device:
            raise DeviceError(f"The vector is on {v.device} and the model on {one.device}. Move one of them.")
        if not bool(torch.isfinite(v).all()):
            raise NonFiniteError("The vector holds NaN or infinity.")
        with torch.inference_mode(False):
            v = v.detach().clone().to(self.dtype)
        # With one output [n, o] is [column, k] with k = 1, and either reading gives the same numbers in the same shape.
        return (v.reshape(-1, 1), "vector" if v.ndim == 1 else "samples") if samples or v.ndim == 1 else (v, "columns")

    def _one(self) -> Tensor:
        return next(iter(trainable(self._module).values()))

    def _like(self) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=self._one().device)

    def _tolerance(self, given: float | None) -> float:
        return given if given is not None else 1e-10 if self.dtype == torch.float64 else 1e-5
