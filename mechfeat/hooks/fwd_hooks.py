"""Hook functions as TransformerLens takes them, as edits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from mechfeat.errors import EmptyGlobError
from mechfeat.hooks.edits import Edit, Replace

FwdHooks = Sequence[tuple[str | Callable[[str], bool], Callable[..., Tensor | None]]]


@dataclass(frozen=True)
class HookRef:
    """What a function in ``fwd_hooks`` is told about the hook point it is called at.

    Attributes:
        name: Hook name.
    """

    name: str


@dataclass(frozen=True, init=False, eq=False, repr=False)
class ForwardHook(Replace):
    """A function ``fn(activation, hook=...)`` of a copy, which is what is taken where it returns None."""

    def at(self, name: str) -> "ForwardHook":
        """The edit with a function that knows the hook name."""
        return ForwardHook(self.hook, _told(self.fn, name), **self.where)


def as_edits(fwd_hooks: FwdHooks, names: Sequence[str]) -> Iterator[Edit]:
    """Hook functions as edits.

    Args:
        fwd_hooks: Pairs of hook name, or predicate over names, and function.
        names: The hook names there are.

    Yields:
        One edit a function and name.

    Raises:
        EmptyGlobError: A predicate accepts none.
    """
    for name, fn in fwd_hooks:
        hooks = [n for n in names if name(n)] if callable(name) else [name]
        if not hooks:
            raise EmptyGlobError("fwd_hooks", names)
        for hook in hooks:
            yield ForwardHook(hook, fn)  # type: ignore[arg-type] # None is filled in by at()


def _told(fn: Callable[..., Tensor | None], name: str) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        new = fn(x, hook=HookRef(name))
        return x if new is None else new

    apply.__name__ = getattr(fn, "__name__", type(fn).__name__)
    return apply
