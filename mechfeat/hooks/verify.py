"""Does a wrapper change anything? A plain run, a recorded one and plain torch hooks, compared tensor by tensor.

The comparison shares no code with recording but the names: copies are taken by hooks written out below, and they are what
recorded values are held against.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mechfeat.errors import NondeterministicModelError
from mechfeat.hooks.cache import ActivationCache
from mechfeat.hooks.names import HookName, Pattern
from mechfeat.hooks.values import leaves, substitute


@dataclass(frozen=True)
class VerifiedPoint:
    """One line of the table.

    Attributes:
        name: Hook name, or ``output`` and the place in it for what the model returns.
        shape: Shape in the plain run.
        dtype: Dtype as text.
        difference: Largest absolute difference in activation units; 0 where all values are equal, infinite where shape or dtype
            differ or one of the two is missing; None where no plain hook can see the value (``mf.point``).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    difference: float | None

    @property
    def equal(self) -> bool | None:
        """Whether all values are equal; None where that could not be compared."""
        return None if self.difference is None else self.difference == 0


@dataclass(frozen=True)
class Verification:
    """What :meth:`HookedModel.verify` found. Prints as a table.

    Attributes:
        output: What the model returned, plain against recorded.
        points: Recorded values against copies taken by plain torch hooks, in order of execution.
        hooks_left: Hooks on the model after the runs, less those before; 0 unless something is broken.
        notes: What about recorded runs of this model differs from plain ones.
    """

    output: tuple[VerifiedPoint, ...]
    points: tuple[VerifiedPoint, ...]
    hooks_left: int
    notes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether everything that could be compared is equal and no hook is left."""
        return self.hooks_left == 0 and all(row.equal is not False for row in (*self.output, *self.points))

    @property
    def largest(self) -> float:
        """Largest difference anywhere, in activation units."""
        return max((row.difference for row in (*self.output, *self.points) if row.difference is not None), default=0.0)

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Names that no plain hook can see: values named by ``mf.point``."""
        return tuple(row.name for row in self.points if row.difference is None)

    def __str__(self) -> str:
        cells = [("hook name", "shape", "dtype", "against plain torch")]
        for row in (*self.output, *self.points):
            found = "not comparable" if row.difference is None else "equal" if row.equal else f"differs by {row.difference:.1e}"
            cells.append((row.name, "x".join(map(str, row.shape)), row.dtype, found))
        widths = [max(len(row[i]) for row in cells) for i in range(4)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in cells]
        compared = [row for row in (*self.output, *self.points) if row.difference is not None]
        lines.append(f"{sum(bool(r.equal) for r in compared)} of {len(compared)} equal, hooks left: {self.hooks_left}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__


def verify(
    module: nn.Module,
    plain: Callable[[Any], Any],
    recorded: Callable[[Any], tuple[Any, ActivationCache]],
    requests: Sequence[Pattern],
    x: Any,
) -> Verification:
    """Compare plain and recorded runs.

    Args:
        module: The model.
        plain: Calls it.
        recorded: Calls it and records ``requests``.
        requests: What is recorded.
        x: The input.

    Returns:
        The table.

    Raises:
        NondeterministicModelError: Two plain runs differ, so that nothing can be compared.
    """
    with _restored(module) as reset:

        def run(call: Callable[[Any], Any]) -> Any:
            reset()
            return call(_copy(x))

        before = _hook_count(module)
        state = torch.get_rng_state()
        first, drawn = _tensors(run(plain)), not torch.equal(state, torch.get_rng_state())
        _check_repeats(module, first, _tensors(run(plain)), drawn)
        copies = run(lambda x: _copies(module, plain, x))
        # Twice: the first recorded run copies every value, the second only those that it saw overwritten.
        runs = [run(recorded) for _ in range(2)]
        caches = [cache for _, cache in runs]
        outputs = [_tensors(out) for out, _ in runs]
        wanted = {key: value for key, value in copies.items() if any(p.selects(key) for p in requests)}
        found = [{_full(name): cache[name] for name in cache} for cache in caches]
        modules = {path for path, _ in module.named_modules()}
        points = []
        for key in dict.fromkeys([*found[0], *wanted]):
            shown = str(key if key.call else HookName(key.path, key.port))
            value = wanted.get(key)
            if value is None and key.path not in modules:
                points.append(_row(shown, found[0][key], None))
            else:
                points.append(_row(shown, found[0][key] if value is None else value, max(_difference(value, f.get(key)) for f in found)))
        output = [
            _row(f"output{place.removeprefix('out')}", value, max(_difference(value, o.get(place)) for o in outputs))
            for place, value in first.items()
        ]
        return Verification(tuple(output), tuple(points), _hook_count(module) - before, caches[0].notes)


def _full(name: str) -> HookName:
    parsed = HookName.parse(name)
    return HookName(parsed.path, parsed.port, parsed.call or 0)


def _row(name: str, value: Tensor, difference: float | None) -> VerifiedPoint:
    return VerifiedPoint(name, tuple(value.shape), str(value.dtype).removeprefix("torch."), difference)


def _copies(module: nn.Module, plain: Callable[[Any], Any], x: Any) -> dict[HookName, Tensor]:
    """Clones of every tensor that enters or leaves a module, by hooks of this function alone."""
    kept: dict[HookName, Tensor] = {}
    calls: dict[tuple[str, str], int] = {}
    handles = []

    def keep(value: Any, path: str, side: str) -> None:
        call = calls[path, side] = calls.get((path, side), -1) + 1
        for place, tensor in _tensors(value, side).items():
            kept[HookName(path, place, call)] = tensor.clone()

    def before(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            keep(args[0] if alone else {**{str(i): a for i, a in enumerate(args)}, **kwargs}, path, "in")

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            keep(out, path, "out")

        return hook

    try:
        for path, m in module.named_modules():
            handles.append(m.register_forward_pre_hook(before(path), with_kwargs=True))
            handles.append(m.register_forward_hook(after(path)))
        plain(x)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def _tensors(value: Any, side: str = "out") -> dict[str, Tensor]:
    """Place and value of each tensor, without graph, padded where torch nests it."""
    return {
        place: part.detach().to_padded_tensor(0.0) if part.is_nested else part.detach()
        for place, part in leaves(value, side)
        if isinstance(part, Tensor)
    }


def _copy(x: Any) -> Any:
    # A model may overwrite its input in place; each run gets its own.
    return substitute(x, {place: part.clone() for place, part in leaves(x, "in") if isinstance(part, Tensor)}, "in")


def _difference(a: Tensor | None, b: Tensor | None) -> float:
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    differs = (a != b) & ~((a != a) & (b != b))  # NaN at the same place is the same value
    if not bool(differs.any()):
        return 0.0
    wide = torch.promote_types(a.dtype, torch.float64)
    gap = float((a[differs].to(wide) - b[differs].to(wide)).abs().max())
    return gap if gap > 0 else float("inf")  # NaN or an infinity on one side


def _check_repeats(module: nn.Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor], drawn: bool) -> None:
    gap = max((_difference(first.get(place), second.get(place)) for place in {*first, *second}), default=0.0)
    if not gap:
        return
    active = [path for path, m in module.named_modules() if m.training and getattr(m, "p", 0) and "Dropout" in type(m).__name__]
    if active:
        reason = f"dropout is active in {', '.join(map(repr, active))}. Call module.eval(), or set p to 0."
    elif drawn:
        reason = "it draws random numbers while it runs. Call module.eval(), or fix the draw in the model."
    else:
        reason = "it keeps state outside its buffers, or an operation is not deterministic. See torch.use_deterministic_algorithms."
    raise NondeterministicModelError(
        f"Two plain runs on the same input differ by {gap:.1e}, so a recorded run cannot be compared with a plain one: {reason}"
    )


@contextmanager
def _restored(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Yields what puts the buffers back; buffers and random number generators are as before when the block ends."""
    buffers = [(m, name, b, b.clone()) for m in module.modules() for name, b in m._buffers.items() if b is not None]
    devices = sorted({p.get_device() for p in module.parameters() if p.is_cuda})

    def reset() -> None:
        with torch.no_grad():
            for m, name, buffer, value in buffers:
                m._buffers[name] = buffer
                if _difference(buffer, value):  # untouched buffers keep their version number
                    buffer.copy_(value)

    with torch.random.fork_rng(devices=devices):
        try:
            yield reset
        finally:
            reset()


def _hook_count(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
