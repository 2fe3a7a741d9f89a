"""What kind of computation this is: the key under which a proof is remembered."""

from typing import Any

from torch import Tensor, nn

from mechfeat.ntk.capture import Capture


class Proved:
    """Kinds of computation whose proof has run in this process, with the parameters it sent to the exact path.

    Args:
        limit: How many are remembered; the oldest is forgotten first.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._seen: dict[int, dict[str, str]] = {}
        self._limit = limit

    def get(self, key: int) -> dict[str, str] | None:
        """Parameters that failed, with the reason; None for a kind not seen."""
        return self._seen.get(key)

    def put(self, key: int, failed: dict[str, str]) -> None:
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
        plain = tuple(sorted((k, v) for k, v in vars(m).items() if isinstance(v, bool | int | float | str) or (isinstance(v, tuple) and _flat(v))))
        structure.append((path, type(m), plain, m.extra_repr()))
    parameters = tuple((n, tuple(p.shape), p.requires_grad) for n, p in module.named_parameters(remove_duplicate=False))
    ties: dict[int, str] = {}
    tied = tuple(ties.setdefault(id(p), n) for n, p in module.named_parameters(remove_duplicate=False))
    inputs = tuple((tuple(x.shape), x.dtype, x.device) for x in xs)
    calls = tuple((tuple(c.log), tuple(sorted(c.unfit.items()))) for c in captures)
    return hash((tuple(structure), parameters, tied, inputs, calls, options))


def _flat(value: tuple[Any, ...]) -> bool:
    return all(isinstance(v, bool | int | float | str) for v in value)
