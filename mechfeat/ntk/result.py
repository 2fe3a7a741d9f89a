"""The result of a kernel computation, with the proof it rests on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechfeat.errors import ShapeError
from mechfeat.features import storable
from mechfeat.features.storage import Stored
from mechfeat.ntk.planner import Plan


@storable
@dataclass(frozen=True)
class Coverage:
    """How one parameter was accounted for.

    Attributes:
        parameter: Its name.
        path: ``rule``, ``exact`` (autograd) or ``unused``.
        detail: The functions of the rules, or why the exact path was taken.
        gap: Disagreement with the independent gradient, relative to the parameter's own part; None where it was not checked
            in this call.
    """

    parameter: str
    path: str
    detail: str
    gap: float | None = None


@storable
@dataclass(frozen=True, eq=False)
class NTKResult(Stored):
    """An empirical neural tangent kernel.

    Attributes:
        kernel: ``[n1 o1 n2 o2]`` for full, ``[n1 n2]`` for trace (a **sum** over outputs), ``[n1 n2 o]`` for diagonal; ``[n1 n2]`` for
            the summed outputs, a class, or a function with one value a sample.
        outputs: Which of them.
        layers: Parameter name → its part of the kernel, where asked for; the parts sum to the kernel.
        plan: What was done, parameter by parameter.
        coverage: How each parameter was accounted for.
        proved: Whether the completeness proof holds for this kind of model, input and options: it ran now or earlier.
        settings: Options, dtype and device.
    """

    kernel: Float[Tensor, "..."]
    outputs: str
    layers: Mapping[str, Tensor] | None
    plan: Plan
    coverage: tuple[Coverage, ...]
    proved: bool
    settings: Mapping[str, Any] = field(default_factory=dict)

    def by_module(self) -> dict[str, Tensor]:
        """Layer kernels summed over the parameters of each module.

        Returns:
            Module path → kernel.

        Raises:
            ShapeError: The layers were not kept.
        """
        if self.layers is None:
            raise ShapeError("This result holds no layer kernels. Compute it with layerwise=True.")
        found: dict[str, Tensor] = {}
        for name, kernel in self.layers.items():
            path = name.rpartition(".")[0]
            found[path] = found[path] + kernel if path in found else kernel
        return found

    def matrix(self) -> Float[Tensor, "row column"]:
        """The kernel as a matrix: samples × outputs on each side for full, samples for trace.

        Returns:
            A view.

        Raises:
            ShapeError: ``diagonal`` is one matrix an output: take ``kernel[..., o]``.
        """
        if self.outputs == "diagonal":
            raise ShapeError("A diagonal kernel is one matrix for each output. Take kernel[..., o].")
        return self.kernel.flatten(0, 1).flatten(1) if self.outputs == "full" else self.kernel

    def spectrum(self) -> Float[Tensor, " eigenvalue"]:
        """Eigenvalues of the kernel of a batch with itself.

        Returns:
            Eigenvalues, largest first, at least 0 up to rounding.

        Raises:
            ShapeError: The two sides differ.
        """
        K = self.matrix()
        if K.shape[0] != K.shape[1]:
            raise ShapeError(f"A spectrum needs a square kernel of a batch with itself; this one is {tuple(K.shape)}.")
        if not torch.equal(K, K.T):
            raise ShapeError(
                "A spectrum needs a kernel of a batch with itself; this one differs from its transpose. Compute it without x2."
            )
        return torch.linalg.eigvalsh(K).flip(0)

    def predict(
        self,
        y: Tensor,
        t: int | float | Sequence[int | float],
        *,
        cross: "NTKResult | None" = None,
        f0_test: Tensor | None = None,
        **options: Any,
    ) -> Float[Tensor, "*time n o"]:
        """Outputs after training by this kernel, that of the training inputs with themselves.

        Args:
            y: Targets of the training inputs.
            t: Number of steps, or time; several give an axis of times.
            cross: Kernel of other inputs with the training inputs, for the outputs there; by default the training outputs.
            f0_test: Outputs on those other inputs before training; zeros by default.
            **options: ``loss``, ``lr``, ``f0`` and others of :class:`~mechfeat.ntk.KernelDynamics`, which says what they mean and what
                is raised.

        Returns:
            Outputs.

        Example:
            >>> from mechfeat.ntk import empirical_ntk
            >>> theta = empirical_ntk(torch.nn.Linear(2, 1, bias=False), torch.eye(2))
            >>> theta.predict(torch.tensor([1.0, -1.0]), 2, loss="squared", lr=1.0).squeeze(1)  # each step halves what is left
            tensor([ 0.7500, -0.7500])
        """
        from mechfeat.ntk.dynamics import KernelDynamics  # which knows this class

        return KernelDynamics(self, y, **options).at(t, cross, f0_test)

    def to_neural_tangents(self) -> Tensor:
        """The kernel in the layout of neural-tangents.

        Returns:
            ``[n1 n2 o1 o2]`` for full; ``[n1 n2]`` **divided by the number of outputs** for trace, as that library's
            ``trace_axes`` does; ``[n1 n2 o]`` for diagonal.
        """
        if self.outputs == "full":
            return self.kernel.permute(0, 2, 1, 3)
        return self.kernel / self.settings["n_outputs"] if self.outputs == "trace" else self.kernel
