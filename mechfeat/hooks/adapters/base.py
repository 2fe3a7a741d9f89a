"""What an adapter says about a model: which hook points play which role, and how parameters are read under standard names."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

ROLES = (
    *("conv", "norm", "act", "pool", "block_out"),
    *("embed", "pos_embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_pre", "mlp_post", "mlp_out"),
    *("final_norm", "logits"),
    *("pre", "post", "hidden"),
)


@dataclass(frozen=True)
class View:
    """A parameter and the way it is turned to the standard layout.

    Attributes:
        module: The module that holds it.
        attribute: Under which name.
        axes: Names of the axes of the view.
        turn: From the parameter to the view, without a copy; None where they are the same.
    """

    module: nn.Module
    attribute: str
    axes: tuple[str, ...]
    turn: Callable[[Tensor], Tensor] | None = None

    @property
    def exists(self) -> bool:
        """Whether the module has this parameter, which a bias may not be."""
        return getattr(self.module, self.attribute, None) is not None

    def read(self) -> Tensor:
        """The view of the parameter as it is now.

        Returns:
            A tensor that shares the parameter's storage.
        """
        value: Tensor = getattr(self.module, self.attribute)
        return value if self.turn is None else self.turn(value)


@dataclass(frozen=True)
class Adapter:
    """Roles and weights of one model.

    Attributes:
        roles: Role → hook names, in order of definition; roles the model lacks are left out.
        views: Weight name → view.
    """

    roles: dict[str, tuple[str, ...]] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)


class Collected:
    """Gathers an adapter, name by name."""

    def __init__(self) -> None:
        self._roles: dict[str, list[str]] = {}
        self._views: dict[str, View] = {}

    def role(self, role: str, name: str) -> None:
        """Note that a hook point plays a role.

        Args:
            role: The role.
            name: Hook name.
        """
        names = self._roles.setdefault(role, [])
        if name not in names:
            names.append(name)

    def views(self, path: str, views: dict[str, View]) -> None:
        """Note the weights of a module.

        Args:
            path: Its module path.
            views: Part → view; parameters that do not exist are left out.
        """
        self._views.update({join(path, part): view for part, view in views.items() if view.exists})

    def adapter(self) -> Adapter:
        """What was gathered.

        Returns:
            The adapter, its roles in the order of ``ROLES``.
        """
        return Adapter({r: tuple(self._roles[r]) for r in ROLES if r in self._roles}, self._views)


def join(path: str, part: str) -> str:
    """A path below a path.

    Args:
        path: A module path, empty for the root.
        part: What follows.

    Returns:
        The two with a dot between them, where there are two.
    """
    return f"{path}.{part}" if path else part


def children(module: nn.Module, *names: str) -> bool:
    """Whether a module has submodules of all these names.

    Args:
        module: The module.
        *names: Attribute names, possibly dotted.

    Returns:
        True if each leads to a module.
    """
    return all(child(module, name) is not None for name in names)


def child(module: nn.Module, name: str) -> nn.Module | None:
    """A submodule, if it exists.

    Args:
        module: The module.
        name: Path below it.

    Returns:
        The submodule, or None.
    """
    here: object = module
    for part in name.split("."):
        here = getattr(here, part, None)
    return here if isinstance(here, nn.Module) else None


def walk(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules under the paths that hook names use.

    Args:
        module: The model.

    Yields:
        Path and module, each module once.
    """
    yield from module.named_modules()


# --- layouts; each is a view of the parameter


def heads_of_rows(d_head: int) -> Callable[[Tensor], Tensor]:
    """From ``[head·d_head d_model]``, as ``nn.Linear`` keeps a projection to heads, to ``[head d_model d_head]``.

    Args:
        d_head: Size of a head.

    Returns:
        The turn.
    """
    return lambda w: w.unflatten(0, (-1, d_head)).transpose(1, 2)


def heads_of_columns(d_head: int) -> Callable[[Tensor], Tensor]:
    """From ``[d_model head·d_head]``, as ``nn.Linear`` keeps a projection from heads, to ``[head d_head d_model]``.

    Args:
        d_head: Size of a head.

    Returns:
        The turn.
    """
    return lambda w: w.unflatten(1, (-1, d_head)).permute(1, 2, 0)


def heads(d_head: int) -> Callable[[Tensor], Tensor]:
    """From ``[head·d_head ...]`` to ``[head d_head ...]``.

    Args:
        d_head: Size of a head.

    Returns:
        The turn.
    """
    return lambda b: b.unflatten(0, (-1, d_head))


def third(i: int, dim: int, turn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """One of three equal parts of a packed parameter, turned.

    Args:
        i: 0 for queries, 1 for keys, 2 for values.
        dim: Axis along which they are packed.
        turn: What is done to the part.

    Returns:
        The turn of the whole.
    """
    return lambda w: turn(w.chunk(3, dim)[i])


def transposed(w: Tensor) -> Tensor:
    """``[in out]`` from ``[out in]``.

    Args:
        w: A matrix.

    Returns:
        Its transpose.
    """
    return w.transpose(0, 1)


def out_in(m: nn.Module | None) -> Callable[[Tensor], Tensor] | None:
    """How the weight of a linear map is turned to ``[out in]``.

    Args:
        m: A module.

    Returns:
        The turn: none for ``nn.Linear``, a transpose for the ``Conv1D`` of ``transformers``; None where it is neither.
    """
    if isinstance(m, nn.Linear):
        return lambda w: w
    return transposed if type(m).__name__ == "Conv1D" and hasattr(m, "nf") else None


AXES_IN = ("head", "d_model", "d_head")  # W_Q, W_K, W_V
AXES_OUT = ("head", "d_head", "d_model")  # W_O


def linear_attention(q: nn.Module | None, k: nn.Module | None, v: nn.Module | None, o: nn.Module | None, d_head: int) -> dict[str, View]:
    """Weights of attention whose projections are four linear maps; keys and values may have fewer heads than queries.

    Args:
        q: Projection to queries.
        k: Projection to keys.
        v: Projection to values.
        o: Projection of the heads' results.
        d_head: Size of a head.

    Returns:
        Part → view; empty where a projection is no plain linear map.
    """
    views: dict[str, View] = {}
    for letter, m in zip("QKV", (q, k, v)):
        turn = out_in(m)
        if m is None or turn is None:
            return {}
        views[f"W_{letter}"] = View(m, "weight", AXES_IN, _then(turn, heads_of_rows(d_head)))
        views[f"b_{letter}"] = View(m, "bias", ("head", "d_head"), heads(d_head))
    turn = out_in(o)
    if o is None or turn is None:
        return {}
    return {**views, "W_O": View(o, "weight", AXES_OUT, _then(turn, heads_of_columns(d_head))), "b_O": View(o, "bias", ("d_model",))}


def linear_mlp(first: nn.Module | None, last: nn.Module | None, gate: nn.Module | None = None) -> dict[str, View]:
    """Weights of an MLP made of linear maps.

    Args:
        first: The layer that reads the residual stream.
        last: The layer that writes to it.
        gate: The layer whose activation multiplies that of ``first``, where the MLP is gated.

    Returns:
        Part → view; empty where ``first`` or ``last`` is no plain linear map.
    """
    views: dict[str, View] = {}
    for part, m, axes in (("in", first, ("d_model", "d_mlp")), ("gate", gate, ("d_model", "d_mlp")), ("out", last, ("d_mlp", "d_model"))):
        turn = out_in(m)
        if m is None or turn is None:
            if part != "gate":
                return {}
            continue
        views[f"W_{part}"] = View(m, "weight", axes, _then(turn, transposed))
        views[f"b_{part}"] = View(m, "bias", axes[1:])
    return views


def _then(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda w: second(first(w))
