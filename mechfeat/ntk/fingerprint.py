"""What kind of computation this is: the key under which a proof is remembered."""

from typing import Any

from torch import Tensor, nn

from mechfeat.ntk.capture import Capture
from mechfeat.ntk.rules import registrations
from mechfeat.points import active


class Proved:
    """Kinds of computation whose proof has run in this process, with the parameters it sent to the exact path.

    Args:
        limit: How many are remembered; the oldest is forgotten first.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._seen: dict[int, dict[str, float]] = {}
        self._limit = limit

    def get(self, key: int) -> dict[str, float] | None:
        """Parameters that failed, with the gap; None for a kind not seen."""
        return self._seen.get(key)

    def put(self, key: int, failed: dict[str, float]) -> None:
        """Remember a finished proof."""
        while len(self._seen) >= self._limit:
            self._seen.pop(next(iter(self._seen)))
        self._seen[key] = failed

    def clear(self) -> None:
        """Forget everything, so that the next call proves anew."""
        self._seen.clear()


def fingerprint(module: nn.Module, xs: tuple[Tensor, ...], captures: tuple[Capture, ...], options: tuple[Any, ...]) -> int:
    """Hash of module structure, input signature, options and the calls that received parameters.

    Values of parameters and inputs are not part of it: the proof is about which uses were accounted for, and that they were
    accounted for rightly, which does not depend on values.

    Args:
        module: The model.
        xs: The batches.
        captures: Their captured passes.
        options: Options of the computation.

    Returns:
        The hash.
    """
    structure = []
    for path, m in module.named_modules():
        plain = tuple(sorted((k, _plain(v)) for k, v in vars(m).items() if _plain(v) is not None))
        structure.append((path, type(m), _code(m.forward), plain, m.extra_repr()))
    parameters = tuple((n, tuple(p.shape), p.dtype, p.device, p.requires_grad) for n, p in module.named_parameters(remove_duplicate=False))
    ties: dict[int, str] = {}
    tied = tuple(ties.setdefault(id(p), n) for n, p in module.named_parameters(remove_duplicate=False))
    inputs = tuple((tuple(x.shape), x.dtype, x.device) for x in xs)
    calls = tuple((tuple(c.log), tuple(sorted(c.unfit.items()))) for c in captures)
    return hash((tuple(structure), parameters, tied, inputs, calls, options, registrations()))


def repeatable(module: nn.Module) -> bool:
    """Whether a proof may be remembered: what hooks and edits do to activations is no part of the hash.

    Args:
        module: The model.

    Returns:
        False while a forward hook or a block of edits is in force.
    """
    return not active() and not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def _plain(value: Any) -> str | None:
    """Text of a value made of plain ones, or of the code of a function; None for anything else."""
    if isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, tuple | list):
        parts = [_plain(v) for v in value]
        return None if None in parts else repr(parts)
    code = _code(value)
    return None if code is None else repr(hash(code))


def _code(function: Any) -> Any:
    # By value: the address of a class or function that was dropped may be that of the next one.
    return getattr(function, "__code__", None)
