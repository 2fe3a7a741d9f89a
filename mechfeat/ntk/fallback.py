"""The exact path: gradients of whole parameters by autograd, for what no rule covers."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.kernels.contract import CHUNK_BYTES
from mechfeat.ntk.capture import _quiet, trainable


def jacobian(module: nn.Module, x: Any, names: Sequence[str], n_outputs: int) -> dict[str, Float[Tensor, "n o p"]]:
    """Gradients of every output of every sample with respect to some parameters.

    By ``torch.func`` where the model runs under it, else by one backward pass a sample and output.

    Args:
        module: The model.
        x: A batch.
        names: Names of the parameters.
        n_outputs: Outputs of the model, flattened.

    Returns:
        Parameter name → gradients, each flattened to one axis.

    Cost:
        ``n o p`` numbers are held.
    """
    chosen = {name: p for name, p in trainable(module).items() if name in names}
    try:
        return _by_vmap(module, x, chosen, n_outputs)
    except Exception:  # noqa: BLE001 - whatever torch.func does not support, the loop does
        return _by_loop(module, x, chosen)


def _by_vmap(module: nn.Module, x: Tensor, chosen: dict[str, nn.Parameter], n_outputs: int) -> dict[str, Tensor]:
    values = {name: p.detach() for name, p in chosen.items()}

    def outputs(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(module, values, (sample.unsqueeze(0),), tie_weights=True).reshape(-1)

    size = sum(p.numel() for p in chosen.values()) * n_outputs * next(iter(chosen.values())).element_size()
    with _quiet():
        J = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0), chunk_size=max(1, CHUNK_BYTES // max(size, 1)))(values, x)
    return {name: g.detach().flatten(2) for name, g in J.items()}


def _by_loop(module: nn.Module, x: Tensor, chosen: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {name: [] for name in chosen}
    with torch.enable_grad():
        for i in range(len(x)):
            y = module(x[i : i + 1]).reshape(-1)
            per_output = [torch.autograd.grad(v, list(chosen.values()), retain_graph=True, allow_unused=True) for v in y]
            for k, (name, p) in enumerate(chosen.items()):
                rows[name].append(torch.stack([(torch.zeros_like(p) if g[k] is None else g[k]).reshape(-1) for g in per_output]))
    return {name: torch.stack(r).detach() for name, r in rows.items()}
