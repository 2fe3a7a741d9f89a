"""The sum over parameters, and what the proof needs to know of each."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mechfeat.errors import ProofError
from mechfeat.kernels import Outputs, dense, kernel_shape, mirror, new_kernel
from mechfeat.kernels.dispatch import add_singles
from mechfeat.kernels.layout import widen
from mechfeat.kernels.tiles import Single
from mechfeat.ntk import contraction
from mechfeat.ntk.contraction import Piece
from mechfeat.ntk.factors import Dense, Factor, Outer, pair
from mechfeat.ntk.outlines import Choose, outline, shape_of
from mechfeat.ntk.proof import tolerances

LARGE = 4 << 20  # bytes of a kernel that no longer stays in the cache between two layers


class Total:
    """A kernel that parameters' parts are added to.

    Args:
        like: Gives dtype and device.
        sides: Samples of the two sides.
        o: Outputs.
        outputs: What is kept of them.
        same: Both sides are one batch: its lower triangle is summed, and mirrored at the end.
        samples: Proof samples of each side.
        layerwise: Keep each parameter's part.

    Attributes:
        parts: Parameter → its part on the proof samples.
        layers: Parameter → its part, if kept.
    """

    def __init__(
        self, like: Tensor, sides: tuple[int, int], o: int, outputs: Outputs, *, same: bool, samples: list[list[int]], layerwise: bool
    ) -> None:
        self._like = widen(like.detach().new_empty(0))
        self._sides, self._o, self._outputs, self._same = sides, o, outputs, same
        self._samples, self._layerwise = samples, layerwise
        self._kernel: Tensor | None = None
        self._wide = False
        self._singles: list[tuple[str, Single]] = []
        self.parts: dict[str, Tensor] = {}
        self.layers: dict[str, Tensor] = {}

    def add(self, name: str, factors1: Sequence[Factor], factors2: Sequence[Factor], choose: Choose, n_rows: int) -> list[Piece]:
        """Add a parameter's part.

        Args:
            name: The parameter.
            factors1: Its uses on the first side.
            factors2: Its uses on the second side; the same object for one batch.
            choose: Decides between the orders.
            n_rows: Size of the parameter's first axis.

        Returns:
            The contractions.
        """
        if self._defer(factors1, factors2):
            a, b = pair(factors1, factors2)
            first = outline(a)
            shape = shape_of(first, first if b is a else outline(b))
            if shape is not None and shape.t == shape.s == 1 and (how := choose(shape, self._outputs)) in ("gram", "output"):
                assert isinstance(a, Outer)
                assert isinstance(b, Outer)
                left1 = None if how == "output" else widen(a.left[:, :, 0]).contiguous()
                right1 = widen(a.inputs[:, 0]).contiguous()
                left2, right2 = (
                    (left1, right1)
                    if b is a
                    else (None if how == "output" else widen(b.left[:, :, 0]).contiguous(), widen(b.inputs[:, 0]).contiguous())
                )
                self._singles.append((name, Single(left1, right1, left2, right2)))
                small = self._zeros([len(s) for s in self._samples])
                if small.numel():
                    few1 = [a.at(self._samples[0])]
                    contraction.contract(small, few1, few1 if b is a else [b.at(self._samples[1])], self._outputs, lambda *_: how, n_rows)
                self._note(name, small)
                return [Piece(how, shape, 0)]
        self._widen(factors1)
        done: list[list[Piece]] = []
        self._sum(name, lambda into: done.append(contraction.contract(into, factors1, factors2, self._outputs, choose, n_rows)))
        return done[0]

    def add_dense(self, name: str, J1: Tensor, J2: Tensor) -> None:
        """Add the part of a parameter whose gradients are there.

        Args:
            name: The parameter.
            J1: First side, ``[n o p]``.
            J2: Second side; the same object for one batch.
        """
        self._sum(name, lambda into: dense(J1, J2, self._outputs, into))

    def form(self, u1: Tensor, u2: Tensor) -> float:
        """The bilinear form of what is summed so far, for a trace.

        Args:
            u1: Cotangents of the first side.
            u2: Cotangents of the second side.

        Returns:
            ``u₁ᵀ Θ u₂``, in float64.
        """
        if self._kernel is None:
            return 0.0
        value, u1, u2 = 0.0, u1.double(), u2.double()
        for i in range(0, len(u1), 1024):
            K = self._kernel[i : i + 1024].double()
            if self._same:  # its lower triangle holds
                low = K.tril(i - 1)
                value += float(2 * (u1[i : i + 1024] @ low @ u2) + (K.diagonal(i) * u1[i : i + 1024] * u2[i : i + 1024]).sum())
            else:
                value += float(u1[i : i + 1024] @ K @ u2)
        return value

    def finish(self) -> Tensor:
        """The kernel, whole.

        Returns:
            ``[n1 o n2 o]``, ``[n1 n2]`` or ``[n1 n2 o]``.

        Raises:
            ProofError: The parts of the parameters do not sum to it on the proof samples.
        """
        for layer in self.layers.values():
            if self._same:
                mirror(layer, self._outputs)
        if self._singles:
            fresh = self._kernel is None
            if fresh:
                shape = kernel_shape(*self._sides, self._o, self._outputs)
                self._kernel = self._like.new_empty(shape)
            assert self._kernel is not None
            self._kernel = self._kernel.to(self._like.dtype)
            four = self._kernel.view(self._sides[0], self._o, self._sides[1], self._o)  # of one output, every reduction is the kernel
            add_singles(four, [s for _, s in self._singles], fresh=fresh, same=self._same)
            self._singles.clear()
            self._check()
            return self._kernel
        kernel = self._zeros(self._sides) if self._kernel is None else self._kernel
        if self._same:
            mirror(kernel, self._outputs)
        return kernel.to(self._like.dtype)

    def _defer(self, factors1: Sequence[Factor], factors2: Sequence[Factor]) -> bool:
        size = self._sides[0] * self._sides[1] * self._o**2 * self._like.element_size()
        single = len(factors1) == len(factors2) == 1 and isinstance(factors1[0], Outer) and isinstance(factors2[0], Outer)
        return single and (self._outputs == "full" or self._o == 1) and not self._layerwise and size > LARGE

    def _zeros(self, sides: Sequence[int]) -> Tensor:
        # Traces are sums of millions of products, which float32 would round thousands of times into one entry.
        dtype = torch.float64 if self._outputs == "trace" or self._wide else self._like.dtype
        return new_kernel(self._like, sides[0], sides[1], self._o, self._outputs, dtype)

    def _widen(self, factors: Sequence[Factor]) -> None:
        """Sum in float64 from here on, where the layer's factors are larger than such a kernel.

        The sums of many positions come in hundreds of pieces, each so small beside the kernel that float32 loses it: half of the error of
        a deep convolutional network.
        """
        found = [f.left for f in factors if not isinstance(f, Dense)]
        if self._wide or not any(widened(x.shape[2], self._sides, x.shape[3], self._o, self._outputs) for x in found):
            return
        self._wide = True
        if self._kernel is not None:
            self._kernel = self._kernel.double()

    def _sum(self, name: str, add: Callable[[Tensor], object]) -> None:
        if self._kernel is None:
            self._kernel = self._zeros(self._sides)
        if self._layerwise:
            part = self._zeros(self._sides)
            add(part)
            self._kernel += part
            self._note(name, on_samples(part, self._samples, self._outputs))
            part = part.to(self._like.dtype)
            self.layers[name] = self.layers[name] + part if name in self.layers else part
            return
        before = on_samples(self._kernel, self._samples, self._outputs)
        add(self._kernel)
        self._note(name, on_samples(self._kernel, self._samples, self._outputs) - before)

    def _note(self, name: str, part: Tensor) -> None:
        part = part.contiguous() if self._outputs != "diagonal" else part
        if self._same:
            mirror(part, self._outputs)  # what is proved is what is handed out
        self.parts[name] = self.parts[name] + part if name in self.parts else part  # a trace comes in several rows

    def _check(self) -> None:
        assert self._kernel is not None
        found, want = on_samples(self._kernel, self._samples, self._outputs), sum(self.parts.values())
        if not found.numel():
            return
        gap, scale = float((found - want).abs().max()), float(found.abs().max())
        if not gap <= tolerances(self._like.dtype)[0] * scale and scale == scale:
            raise ProofError(["the sum over parameters"], [gap / scale], "Every part was right on its own: please report this model.")


def widened(t: int, sides: tuple[int, int], c: int, o: int, outputs: Outputs) -> bool:
    """Whether a layer's part is summed in float64.

    Args:
        t: Its positions.
        sides: Samples of the two sides.
        c: Its output channels.
        o: Outputs.
        outputs: What is kept of them.

    Returns:
        True for several positions, where such a kernel is smaller than the layer's gradients.
    """
    n1, n2 = sides
    return t > 1 and n1 * o * t * c * 4 > n1 * n2 * o ** (2 if outputs == "full" else 1) * 8


def on_samples(part: Tensor, samples: list[list[int]], outputs: Outputs) -> Tensor:
    """The entries of a kernel between some samples.

    Args:
        part: A kernel.
        samples: Their indices on each side.
        outputs: What the kernel keeps of the outputs.

    Returns:
        A smaller kernel of the same layout; a copy.
    """
    a, b = (torch.tensor(s, dtype=torch.long, device=part.device) for s in samples)
    return part[a][:, :, b] if outputs == "full" else part[a][:, b]
