"""The exact path: gradients of whole parameters by autograd, for what no rule covers."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.kernels.contract import CHUNK_BYTES
from mechfeat.ntk.capture import trainable
from mechfeat.ntk.proof import cotangent, tolerances
from mechfeat.ntk.taps import quiet


def jacobian(module: nn.Module, x: Any, names: Sequence[str], n_outputs: int) -> dict[str, Float[Tensor, "n o p"]]:
    """Gradients of every output of every sample with respect to some parameters.

    By ``torch.func`` where the model runs under it, else by one backward pass a sample and output: on the sample alone, or, where
    the model fixes its batch size, on the whole batch. The first whose sum agrees with one plain backward pass is taken, since
    ``torch.func`` replaces attributes of modules and does not see a parameter that the model keeps elsewhere.

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
    for way in (_by_vmap, _by_sample):
        try:
            J = way(module, x, chosen, n_outputs)
        except Exception:
            continue  # whatever one way does not support, the next does
        if _agrees(module, x, chosen, n_outputs, J):
            return J
    return _by_batch(module, x, chosen, n_outputs)


def _agrees(module: nn.Module, x: Tensor, chosen: dict[str, nn.Parameter], n_outputs: int, J: dict[str, Tensor]) -> bool:
    if any(J[name].shape != (len(x), n_outputs, p.numel()) for name, p in chosen.items()):
        return False
    with torch.enable_grad():
        y = module(x.clone()).reshape(len(x), -1)
    v = cotangent(len(y), y.shape[1], y, torch.Generator().manual_seed(0))
    found = _gradients(y, v, chosen)
    relative = tolerances(y.dtype)[0] * y.numel() ** 0.5
    return all(
        bool(((v.flatten() @ J[n].flatten(0, 1)) - g.reshape(-1)).abs().max() <= relative * J[n].abs().max()) for n, g in found.items()
    )


def _by_vmap(module: nn.Module, x: Tensor, chosen: dict[str, nn.Parameter], n_outputs: int) -> dict[str, Tensor]:
    values = {name: p.detach() for name, p in chosen.items()}

    def outputs(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(module, values, (sample.unsqueeze(0),), tie_weights=True).reshape(-1)

    size = sum(p.numel() for p in chosen.values()) * n_outputs * next(iter(chosen.values())).element_size()
    with quiet():
        J = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0), chunk_size=max(1, CHUNK_BYTES // max(size, 1)))(
            values, x.clone()
        )
    return {name: g.detach().reshape(*g.shape[:2], -1) for name, g in J.items()}


def _by_sample(module: nn.Module, x: Tensor, chosen: dict[str, nn.Parameter], n_outputs: int) -> dict[str, Tensor]:
    rows = [_by_batch(module, x[i : i + 1], chosen, n_outputs) for i in range(len(x))]
    return {name: torch.cat([r[name] for r in rows]) for name in chosen}


def _by_batch(module: nn.Module, x: Tensor, chosen: dict[str, nn.Parameter], n_outputs: int) -> dict[str, Tensor]:
    with torch.enable_grad():
        y = module(x.clone()).reshape(-1)
    rows = [_gradients(v, None, chosen) for v in y]
    return {name: torch.stack([r[name].reshape(-1) for r in rows]).view(len(x), n_outputs, -1) for name in chosen}


def _gradients(y: Tensor, v: Tensor | None, chosen: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    if not y.requires_grad:
        return {name: torch.zeros_like(p) for name, p in chosen.items()}
    found = torch.autograd.grad(y, list(chosen.values()), v, retain_graph=True, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g for (name, p), g in zip(chosen.items(), found)}
