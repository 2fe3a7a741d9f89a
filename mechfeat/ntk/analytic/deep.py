r"""Deep networks of infinite width: their NNGP and tangent kernels by recursion over layers, and the same networks at a finite width.

A layer with weights and biases has :math:`Σ = σ_w^2 K + σ_b^2` and adds its own gradients, :math:`Θ ← Σ + σ_w^2 Θ`; an activation function
maps covariances by its dual, :math:`K = k(Σ)`, and :math:`Θ ← k_1(Σ)\, Θ`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import DeviceError, DtypeError, NonFiniteError, OptionError, ShapeError, UnsupportedModelError
from mechfeat.ntk.analytic.deep_blocks import Residual, chain, through
from mechfeat.ntk.analytic.deep_covariance import Covariance
from mechfeat.ntk.analytic.deep_layers import Dense, Kind, Layer


@dataclass(frozen=True)
class InfiniteKernels:
    """Both kernels of an infinitely wide network, for one output; outputs are independent and alike.

    Args:
        nngp: Covariance of the outputs over random initial weights, ``[n1 n2]``.
        ntk: Inner products of their gradients, ``[n1 n2]``.
    """

    nngp: Float[Tensor, "n1 n2"]
    ntk: Float[Tensor, "n1 n2"]


@dataclass(frozen=True)
class DeepKernel:
    """A deep network, described by its layers; made by :func:`serial`.

    Args:
        layers: The layers; the last is ``Dense``, the read-out.
        max_memory: Bytes that the covariances of one block of samples may take; larger batches are computed block by block.

    Raises:
        UnsupportedModelError: The network has no such kernel, or does not end with a read-out.
        OptionError: There is no layer.
    """

    layers: tuple[Layer, ...]
    max_memory: int = 1 << 28

    def __post_init__(self) -> None:
        if not self.layers:
            raise OptionError("layers", self.layers, ("one layer or more",))
        through(self.layers, Kind())
        if not isinstance(self.layers[-1], Dense):
            raise UnsupportedModelError(
                f"The network ends with {self.layers[-1]}, and its outputs are no linear read-out. End it with Dense(), after Flatten() or "
                "GlobalAvgPool() where there are positions."
            )

    def __call__(
        self, x1: Float[Tensor, "n1 channel *position"], x2: Float[Tensor, "n2 channel *position"] | None = None
    ) -> Float[Tensor, "n1 n2"]:
        """The tangent kernel of one output.

        Args:
            x1: A batch.
            x2: Another batch; by default the kernel is that of ``x1`` with itself.

        Returns:
            The kernel, float64. See :meth:`kernels` for errors and cost.
        """
        return self.kernels(x1, x2).ntk

    def kernels(
        self, x1: Float[Tensor, "n1 channel *position"], x2: Float[Tensor, "n2 channel *position"] | None = None
    ) -> InfiniteKernels:
        r"""The NNGP kernel and the tangent kernel of one output.

        With ReLU an input in both batches is found at an angle of about 1e-8 from itself, by rounding, and :math:`k_1` follows it; with
        ``x2`` left out an input and itself are the same.

        Args:
            x1: A batch, samples along the first axis, channels along the second.
            x2: Another batch; by default the kernel is that of ``x1`` with itself, and symmetric bit for bit.

        Returns:
            Both kernels, float64.

        Raises:
            ShapeError: The batches do not fit each other or the layers.
            DtypeError: A batch is not floating-point.
            DeviceError: They are on different devices.
            NonFiniteError: One holds NaN or infinity, or a kernel grows beyond the largest number.
            QuadratureError: The dual of an activation function is not known to its tolerance at the variances that occur.

        Cost:
            O(n1 n2 L) for L layers, times P positions for convolutions, times P² where positions are averaged.
        """
        x1, x2, same = *_checked(x1, x2), x2 is None
        nngp, ntk = (x1.new_zeros(len(x1), len(x2)) for _ in range(2))
        for rows, columns in self._blocks(x1, x2):
            if same and columns.start > rows.start:
                continue
            K = Covariance.of(x1[rows], x2[columns], pairs=self._pairs(x1), same=same and rows == columns)
            for layer in self.layers:
                K = layer.infinite(K)
            for whole, block in ((nngp, K.nngp), (ntk, K.ntk)):
                whole[rows, columns] = (block + block.T) / 2 if K.same else block
                if same and not K.same:
                    whole[columns, rows] = block.T
        if not bool(torch.isfinite(nngp).all() and torch.isfinite(ntk).all()):
            raise NonFiniteError(
                "The kernel of this network is not finite for these inputs: its covariances grow beyond float64 from layer to layer. Take "
                "a smaller W_std, or inputs of a smaller norm."
            )
        return InfiniteKernels(nngp, ntk)

    def module(self, width: int, shape: Sequence[int], *, n_outputs: int = 1, generator: torch.Generator | None = None) -> nn.Sequential:
        """The same network at a finite width, in NTK parameterisation: its empirical kernel tends to this one.

        Args:
            width: Channels of each hidden layer.
            shape: Shape ``(channel, *position)`` of one input.
            n_outputs: Outputs.
            generator: Source of the initial weights; the default one of torch if None.

        Returns:
            A module with standard Gaussian parameters, in torch's default dtype.

        Raises:
            OptionError: A size is not a positive integer.
            ShapeError: The shape does not fit the layers.
        """
        for option, value in (("width", width), ("n_outputs", n_outputs)):
            if not isinstance(value, int) or value < 1:
                raise OptionError(option, value, ("a positive integer",))
        modules, before = chain(self.layers[:-1], tuple(shape), width, generator)
        if len(before) != 1:
            raise ShapeError(
                f"Dense was given inputs with {len(before) - 1} axes of positions, {list(before[1:])}. Put Flatten() or GlobalAvgPool() "
                "before it, or take Conv(1) for a layer at each position."
            )
        return nn.Sequential(*modules, self.layers[-1].finite(before, n_outputs, generator)[0])

    def _pairs(self, x: Tensor) -> bool:
        return x.ndim > 2 and any(layer.needs_pairs() for layer in self.layers)

    def _blocks(self, x1: Tensor, x2: Tensor) -> Iterator[tuple[slice, slice]]:
        positions = x1[0, 0].numel() if len(x1) else 1
        # A layer holds about six arrays of a block at a time: kernels before and after it, and what the dual makes on its way.
        entries = self.max_memory // (8 * 6 * positions ** (2 if self._pairs(x1) else 1))
        side = max(1, int(entries**0.5))
        for i in range(0, len(x1), side):
            for j in range(0, len(x2), side):
                yield slice(i, min(i + side, len(x1))), slice(j, min(j + side, len(x2)))


def serial(*layers: Layer) -> DeepKernel:
    """A network of layers, one after the other.

    Args:
        layers: The layers; the last is ``Dense``, the read-out.

    Returns:
        The network: a kernel at infinite width, and by ``module`` a torch module at any other.

    Example:
        >>> from mechfeat.ntk.analytic import Dense, Nonlinearity
        >>> net = serial(Dense(W_std=2**0.5), Nonlinearity("relu"), Dense())
        >>> x = torch.eye(2).double()
        >>> net(x)
        tensor([[1.0000, 0.1592],
                [0.1592, 1.0000]], dtype=torch.float64)
        >>> net.module(64, x.shape[1:], n_outputs=3)(x.to(torch.get_default_dtype())).shape
        torch.Size([2, 3])
    """
    return DeepKernel(tuple(layers))


def residual(*body: Layer, shortcut: Sequence[Layer] = ()) -> Residual:
    """A block that adds its input, or a shortcut from it, to the outputs of its layers.

    Args:
        body: The layers.
        shortcut: Layers of the shortcut; none for the input itself.

    Returns:
        A layer.

    Raises:
        OptionError: There is no layer.
    """
    if not body:
        raise OptionError("body", body, ("one layer or more",))
    return Residual(tuple(body), tuple(shortcut))


def _checked(x1: Tensor, x2: Tensor | None) -> tuple[Tensor, Tensor]:
    for name, x in (("x1", x1), ("x2", x1 if x2 is None else x2)):
        if not x.is_floating_point():
            raise DtypeError(f"{name} has dtype {x.dtype}. Inputs of a network are floating-point; `{name}.double()` makes them so.")
        if x.ndim not in (2, 3, 4) or 0 in x.shape[1:]:
            raise ShapeError(f"{name} has shape {list(x.shape)}. Give [sample channel], then at most two axes of positions, none empty.")
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError(f"{name} holds NaN or infinity. `torch.isfinite({name})` shows where.")
    if x2 is not None and x2.shape[1:] != x1.shape[1:]:
        raise ShapeError(f"Inputs of x1 have shape {list(x1.shape[1:])}, and those of x2 {list(x2.shape[1:])}. Give inputs of one shape.")
    if x2 is not None and x2.device != x1.device:
        raise DeviceError(f"x1 is on {x1.device}, and x2 on {x2.device}. Move them to one device.")
    x1 = x1.detach().double()
    return x1, x1 if x2 is None else x2.detach().double()
