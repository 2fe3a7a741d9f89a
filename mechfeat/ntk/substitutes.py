"""Functions that run in the place of others on the way to a kernel, with the same values and a cheaper backward pass."""

from typing import Any

import torch
from torch import Tensor

from mechfeat.kernels.linear import linear
from mechfeat.kernels.products import quick


def faster(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What runs in a function's place on the way to a kernel, which needs no gradient of a weight.

    Args:
        function: A torch function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        Another function of the same arguments, or the function.
    """
    if function is not torch.nn.functional.linear or kwargs or not all(isinstance(a, Tensor) for a in args[:2]):
        return function
    x, W, b = (*args, None)[:3]
    if torch.is_autocast_enabled(x.device.type) or any(torch._C._functorch.is_batchedtensor(t) for t in (x, W)) or _watched():
        return function
    plain = all(t is None or t.is_leaf or not t.requires_grad for t in (W, b))  # one that is computed wants its gradient
    fits = plain and x.ndim > 1 and x.numel() and W.ndim == 2 and x.shape[-1] == W.shape[1] and x.is_contiguous()
    if not fits or not quick(x.detach().view(-1, x.shape[-1]), W):
        return function
    return lambda *_: linear(x, W, b)


def _watched() -> bool:
    """Whether someone counts the tensors that a call keeps, as a checkpoint does; the plan's own count does not mind."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and not getattr(hooks[0], "counts", False)
