"""The ways to compute an empirical NTK that are compared: ours and the best recipes at hand."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mechfeat.ntk import empirical_ntk


@dataclass(frozen=True)
class Method:
    """A way to compute ``[n o n o]`` of a batch with itself.

    Attributes:
        name: Name in the results.
        run: From module and batch to the kernel.
        reduce: What the kernel keeps of the full one: ``full``, ``trace``, ``diagonal``, ``pseudo``, or ``halves``, of the first half of
            the batch against the second.
        jacobian: Whether it holds the Jacobian of the whole network.
    """

    name: str
    run: Callable[[nn.Module, Tensor], Tensor]
    reduce: str = "full"
    jacobian: bool = False


def _ours(module: nn.Module, x: Tensor) -> Tensor:
    return empirical_ntk(module, x).kernel


def _ours_first(module: nn.Module, x: Tensor) -> Tensor:
    return empirical_ntk(module, x, prove="always").kernel


def _reduced(module: nn.Module, x: Tensor, outputs: str) -> Tensor:
    return empirical_ntk(module, x, outputs=outputs).kernel  # type: ignore[arg-type]


def jacobian_contraction(module: nn.Module, x: Tensor, x2: Tensor | None = None) -> Tensor:
    """The recipe of the torch.func tutorial: ``vmap(jacrev)`` for every parameter, then one einsum a parameter.

    Args:
        module: The model.
        x: A batch.
        x2: A second batch, by default the same.

    Returns:
        ``[n o m o]``.

    Source:
        PyTorch documentation, *Neural Tangent Kernels*, Jacobian contraction.
    """
    values = {name: p.detach() for name, p in module.named_parameters()}

    def single(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(module, values, (sample.unsqueeze(0),)).squeeze(0)

    jacobian = torch.func.vmap(torch.func.jacrev(single), (None, 0))
    J1 = jacobian(values, x)
    J2 = J1 if x2 is None else jacobian(values, x2)
    return torch.stack([torch.einsum("naf,mbf->namb", J1[name].flatten(2), J2[name].flatten(2)) for name in J1]).sum(0)


def ntk_vector_products(module: nn.Module, x: Tensor) -> Tensor:
    """The second recipe of that tutorial: for every pair of samples, products with unit vectors, one vjp and one jvp each.

    Args:
        module: The model.
        x: A batch.

    Returns:
        ``[n o n o]``.

    Source:
        PyTorch documentation, *Neural Tangent Kernels*, NTK-vector products.
    """
    values = {name: p.detach() for name, p in module.named_parameters()}

    def one(a: Tensor, b: Tensor) -> Tensor:
        def at(sample: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
            return lambda v: torch.func.functional_call(module, v, (sample.unsqueeze(0),)).squeeze(0)

        y, back = torch.func.vjp(at(a), values)[:2]

        def product(v: Tensor) -> Tensor:
            return torch.func.jvp(at(b), (values,), back(v))[1]

        return torch.func.vmap(product)(torch.eye(len(y), dtype=y.dtype, device=y.device))

    pairs = torch.func.vmap(torch.func.vmap(one, (None, 0)), (0, None))
    return torch.cat([pairs(part, x) for part in x.split(1)]).transpose(1, 2)


METHODS = {
    m.name: m
    for m in (
        Method("mechfeat", _ours),
        Method("mechfeat first call", _ours_first),
        Method("torch.func jacobian contraction", jacobian_contraction, jacobian=True),
        *(Method(f"mechfeat {kind}", partial(_reduced, outputs=kind), kind) for kind in ("trace", "diagonal", "pseudo")),
    )
}
