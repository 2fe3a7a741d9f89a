"""A matrix kept as the product of two thin ones, such as the QK and OV circuits of an attention head.

The product of ``[d_model d_head]`` and ``[d_head d_model]`` has rank ``d_head`` at most. Its spectrum follows from matrices of
that size, so the ``d_model²`` numbers of the product are never made unless asked for.
"""

from typing import Union, overload

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from mechfeat.errors import ShapeError


class LowRank:
    r"""``A B``, kept as its factors; leading axes are a batch.

    Args:
        A: Left factor.
        B: Right factor.

    Attributes:
        A: Left factor, as given.
        B: Right factor, as given.

    Raises:
        ShapeError: The factors do not fit.

    Example:
        >>> M = LowRank(torch.ones(4, 1), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        >>> M
        LowRank(4×4, rank at most 1)
        >>> M.eigenvalues(), M @ torch.ones(4)
        (tensor([10.+0.j]), tensor([10., 10., 10., 10.]))
    """

    # Tensors leave x @ M to __rmatmul__ instead of trying to make a tensor of M.
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __init__(self, A: Float[Tensor, "*batch row rank"], B: Float[Tensor, "*batch2 rank column"]) -> None:
        if A.ndim < 2 or B.ndim < 2 or A.shape[-1] != B.shape[-2]:
            raise ShapeError(
                f"LowRank was given A {list(A.shape)} and B {list(B.shape)}. It needs A [... row rank] and B [... rank column], "
                "with the same rank."
            )
        self.A, self.B = A, B

    @property
    def shape(self) -> torch.Size:
        """Shape of the product."""
        batch = torch.broadcast_shapes(self.A.shape[:-2], self.B.shape[:-2])
        return torch.Size((*batch, self.A.shape[-2], self.B.shape[-1]))

    @property
    def T(self) -> "LowRank":
        """The transpose: views of the factors."""
        return LowRank(self.B.transpose(-2, -1), self.A.transpose(-2, -1))

    @overload
    def __matmul__(self, other: "LowRank") -> "LowRank": ...
    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    def __matmul__(self, other: Union["LowRank", Tensor]) -> Union["LowRank", Tensor]:
        if isinstance(other, LowRank):
            middle = self.B @ other.A
            if middle.shape[-2] <= middle.shape[-1]:
                return LowRank(self.A, middle @ other.B)
            return LowRank(self.A @ middle, other.B)
        if isinstance(other, Tensor):
            if other.ndim == 1:  # of one vector for the whole batch, torch's matmul would make a matrix of the batch
                return (self.A @ (self.B @ other[:, None]))[..., 0]
            return self.A @ (self.B @ other)
        return NotImplemented

    def __rmatmul__(self, other: Tensor) -> Tensor:
        if other.ndim == 1:
            return ((other[None] @ self.A) @ self.B)[..., 0, :]
        return (other @ self.A) @ self.B

    def dense(self) -> Float[Tensor, "*batch row column"]:
        """The product itself.

        Returns:
            All its elements.
        """
        return self.A @ self.B

    def singular_values(self) -> Float[Tensor, "*batch rank"]:
        """Singular values, largest first.

        Returns:
            As many as the product can have that are not zero: the smallest of rows, columns and rank. The others are zero.

        Cost:
            O((rows + columns) rank²) time.
        """
        return torch.linalg.svdvals(self._core())

    def eigenvalues(self) -> Complex[Tensor, "*batch rank"]:
        """Eigenvalues, in no particular order; those of ``A B`` that are not zero are those of ``B A``.

        Returns:
            Complex values, one for each of the rank. The other eigenvalues of the product are zero.

        Raises:
            ShapeError: The product is not square.

        Cost:
            O(rows rank² + rank³) time.
        """
        rows, columns = self.shape[-2:]
        if rows != columns:
            raise ShapeError(f"Eigenvalues need a square matrix, and this one is {rows}×{columns}. `singular_values()` exist for any.")
        small = self.B @ self.A if self.A.shape[-1] <= rows else self.dense()
        return torch.linalg.eigvals(small)

    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm.

        Returns:
            The root of the sum of squares of all elements.
        """
        # Not from the Gram matrices tr(AᵀA BBᵀ), whose terms may cancel: that would lose half the digits.
        return torch.linalg.matrix_norm(self._core())

    def _core(self) -> Tensor:
        """A small matrix with the singular values of the product, since Q of a QR decomposition keeps them."""
        return torch.linalg.qr(self.A)[1] @ torch.linalg.qr(self.B.transpose(-2, -1))[1].transpose(-2, -1)

    def __repr__(self) -> str:
        *batch, rows, columns = self.shape
        return f"LowRank({'×'.join(map(str, [*batch, rows, columns]))}, rank at most {min(rows, columns, self.A.shape[-1])})"
