"""Adapters: what hook points and weights of known families are called, over and above their module paths.

A role (``conv``, ``resid_post``) is a second, optional name that stands for a set of hook points, so that the same request
serves every network of a family. An unknown model has none, and loses nothing else.
"""

from collections.abc import Mapping

from torch import nn

from mechfeat.hooks.adapters import cnn, huggingface, mlp, torch_attention, transformer_lens
from mechfeat.hooks.adapters.base import ROLES, Adapter, Collected, View

__all__ = ["ROLES", "Adapter", "View", "adapter_for", "aliases"]


def adapter_for(module: nn.Module) -> Adapter:
    """Roles and standard weight names of a model.

    Args:
        module: The model.

    Returns:
        The adapter; an empty one where nothing is known.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        >>> adapter_for(net).roles
        {'conv': ('0', '2'), 'act': ('1',)}
    """
    found = Collected()
    if transformer_lens.collect(module, found) or huggingface.collect(module, found):
        return found.adapter()
    attention = torch_attention.collect(module, found)
    if not cnn.collect(module, found) and not attention:
        mlp.collect(module, found)
    return found.adapter()


def aliases(module: nn.Module, path_of: Mapping[int, str]) -> dict[str, str]:
    """Further names of modules, for models that give them.

    Args:
        module: The model.
        path_of: Path by identity of the module.

    Returns:
        Name → module path; empty but for the bridge of TransformerLens.
    """
    return transformer_lens.aliases(module, path_of)
