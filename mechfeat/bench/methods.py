"""The ways to compute an empirical NTK that are compared: ours and the best recipes at hand."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mechfeat.ntk import PROVED, empirical_ntk


@dataclass(frozen=True)
class Method:
    """A way to compute ``[n o n o]`` of a batch with itself.

    Attributes:
        name: Name in the results.
        run: From module and batch to the kernel.
    """

    name: str
    run: Callable[[nn.Module, Tensor], Tensor]


def _ours(module: nn.Module, x: Tensor) -> Tensor:
    return empirical_ntk(module, x).kernel


def _ours_first(module: nn.Module, x: Tensor) -> Tensor:
    PROVED.clear()
    return empirical_ntk(module, x).kernel


def jacobian_contraction(module: nn.Module, x: Tensor) -> Tensor:
    """The recipe of the torch.func tutorial: ``vmap(jacrev)`` for every parameter, then one einsum a parameter.

    Args:
        module: The model.
        x: A batch.

    Returns:
        ``[n o n o]``.

    Source:
        PyTorch documentation, *Neural Tangent Kernels*, Jacobian contraction.
    """
    values = {name: p.detach() for name, p in module.named_parameters()}

    def single(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(module, values, (sample.unsqueeze(0),)).squeeze(0)

    J = torch.func.vmap(torch.func.jacrev(single), (None, 0))(values, x)
    return torch.stack([torch.einsum("naf,mbf->namb", j.flatten(2), j.flatten(2)) for j in J.values()]).sum(0)


METHODS = {
    m.name: m
    for m in (
        Method("mechfeat", _ours),
        Method("mechfeat first call", _ours_first),
        Method("torch.func jacobian contraction", jacobian_contraction),
    )
}
