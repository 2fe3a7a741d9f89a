"""Recording over many batches: hooks that stay in place, and what is kept of each batch.

Registering hooks costs more than calling them on small models, so a :class:`Session` registers once. Its hooks listen only while
it is being called itself: other calls of the model, between two batches or from another thread, pass unseen.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechfeat import points
from mechfeat.errors import OptionError, SelectorError, SessionClosedError
from mechfeat.hooks.cache import ActivationCache
from mechfeat.hooks.recorder import Recorder


class Session:
    """Records one batch a call, with hooks that are registered once. Made by :meth:`HookedModel.attach`.

    Modules added to the model while it is open are not seen. Threads that share a session take turns.

    Args:
        recorder: Holds what is asked for.
        call: Calls the model with an input and keyword arguments.
        kind: Tells the kind of a call: under it the number of calls of each hook point is remembered.
    """

    def __init__(self, recorder: Recorder, call: Callable[[Any, Mapping[str, Any]], Any], kind: Callable[..., object]) -> None:
        self._recorder, self._call, self._kind = recorder, call, kind
        self._turn = threading.Lock()
        self._remove: Callable[[], None] | None = None
        self._outer: tuple[points.Scope, ...] = ()

    def __call__(self, x: Any, **kwargs: Any) -> ActivationCache:
        """Record one batch.

        Args:
            x: The input, as in :meth:`HookedModel.run_with_cache`.
            **kwargs: Keyword arguments of the model.

        Returns:
            The cache, which the session does not hold on to.

        Raises:
            SessionClosedError: The ``with`` block has ended.
        """
        with self._turn:
            if self._remove is None:
                raise SessionClosedError
            if points.active() != self._outer:  # a block of edits was opened or closed since: torch calls hooks in order of registration,
                self._remove()  # and edits that are in force must come before recording
                self._place()
            recorder = self._recorder
            recorder.restart(self._kind(x, kwargs))
            try:
                with points.entered(recorder):
                    recorder.run(lambda: self._call(x, kwargs))
                return recorder.finish()
            finally:
                recorder.forget()

    @contextmanager
    def opened(self) -> Iterator["Session"]:
        """Hooks in place until the block ends.

        Yields:
            This session.
        """
        self._place()
        try:
            yield self
        finally:
            with self._turn:
                remove, self._remove = self._remove, None
                if remove is not None:
                    remove()

    def _place(self) -> None:
        # The scope is entered in a context of its own: there it may stay open across the batches, and across the yields of a
        # generator, while in the caller's context it is active during a call alone.
        elsewhere = copy_context()
        hooks = self._recorder.open()
        self._remove, self._outer = None, points.active()
        elsewhere.run(hooks.__enter__)

        def remove() -> None:
            elsewhere.run(hooks.__exit__, None, None, None)

        self._remove = remove


@dataclass(frozen=True, eq=False)
class RunningMean:
    """Mean over all samples streamed so far.

    Attributes:
        values: Hook name → mean over the sample axis, in float64 (complex128), activation units.
        count: Hook name → number of samples it is the mean of.
    """

    values: Mapping[str, Tensor]
    count: Mapping[str, int]

    def updated(self, cache: ActivationCache) -> "RunningMean":
        """The mean with one more batch.

        Args:
            cache: The batch.

        Returns:
            A new value; this one stays.

        Raises:
            SelectorError: An activation is not known to have a sample axis, or its other axes changed between batches.
        """
        values, count = dict(self.values), dict(self.count)
        for name, x in cache.items():
            axes = cache.axes(name)
            if "sample" not in axes:
                raise SelectorError(
                    f"{name!r} has axes {axes}, of which none is known to be the sample. Name them with HookedModel(net, axes=...), "
                    "or reduce with a function."
                )
            axis = axes.index("sample")
            n = x.shape[axis]
            total = x.to(torch.promote_types(x.dtype, torch.float64)).sum(axis)
            seen = count.get(name, 0)
            if seen and values[name].shape != total.shape:
                raise SelectorError(
                    f"{name!r} has shape {tuple(total.shape)} a sample in this batch and had {tuple(values[name].shape)} before, so their "
                    "mean is not defined. Batches of one shape are needed, or reduce with a function."
                )
            if n:
                # The step form: the mean itself stays in the range of the values, however many there are.
                values[name] = values[name] + (total - n * values[name]) / (seen + n) if seen else total / n
                count[name] = seen + n
        return RunningMean(values, count)


Reduce = Callable[[ActivationCache], Any] | str | None


def stream(session: Session, loader: Iterable[Any], reduce: Reduce, inputs: Callable[[Any], Any] | None, progress: bool) -> Iterator[Any]:
    """What is kept of each batch, one batch at a time, without gradients.

    Args:
        session: Records; not yet open.
        loader: Yields batches.
        reduce: Function of a cache, ``"mean"``, or None for the cache itself.
        inputs: From a batch to the model's input.
        progress: Show a bar.

    Returns:
        One value a batch.

    Raises:
        OptionError: ``reduce`` is none of the above.
    """
    if not (reduce is None or reduce == "mean" or callable(reduce)):
        raise OptionError("reduce", reduce, ("mean", "a function of the cache", None))
    return _streamed(session, loader, reduce, inputs, progress)


def _streamed(
    session: Session, loader: Iterable[Any], reduce: Reduce, inputs: Callable[[Any], Any] | None, progress: bool
) -> Iterator[Any]:
    mean = RunningMean({}, {})
    with session.opened():
        for batch in shown(loader, progress):
            with torch.no_grad():  # around the batch alone: the consumer of a generator runs in its own mode
                cache = session(model_input(batch, inputs))
                if callable(reduce):
                    kept = reduce(cache)
                elif reduce is None:
                    kept = cache
                else:
                    kept = mean = mean.updated(cache)
            del cache, batch
            yield kept
            del kept


def shown(loader: Iterable[Any], progress: bool) -> Iterable[Any]:
    """A loader, with a bar if asked for.

    Args:
        loader: Yields batches.
        progress: Whether to show a bar.

    Returns:
        The loader or a bar around it.
    """
    if not progress:
        return loader
    from tqdm import tqdm

    return tqdm(loader, unit="batch")


def model_input(batch: Any, inputs: Callable[[Any], Any] | None) -> Any:
    """The model's input in a batch.

    Args:
        batch: What a loader yields.
        inputs: From a batch to the input; None where the batch is the input.

    Returns:
        The input. A list of one, as ``TensorDataset`` gives it, is that one.

    Raises:
        OptionError: The batch is a longer list, so which part is the input is not known.
    """
    if inputs is not None:
        return inputs(batch)
    if isinstance(batch, list):
        if len(batch) == 1:
            return batch[0]
        error = OptionError("inputs", None, ("a function from a batch to the model's input",))
        error.args = (
            (
                f"The loader yields lists of {len(batch)}, and which part the model takes is not known. Say it with inputs=, for instance "
                "inputs=lambda batch: batch[0]."
            ),
        )
        raise error
    return batch


@dataclass(frozen=True)
class StreamEstimate:
    """What streaming will keep, measured on one input. Prints as a table.

    Attributes:
        by_name: Hook name → bytes a sample.
        shapes: Hook name → shape of the whole batch that was measured.
        n: Number of samples in that batch.
    """

    by_name: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    n: int

    @property
    def per_sample(self) -> float:
        """Bytes a sample, all hook points together."""
        return sum(self.by_name.values())

    def total(self, n: int) -> int:
        """Bytes for a data set.

        Args:
            n: Number of samples.

        Returns:
            Bytes of the values, without headers (a few kilobytes a shard).
        """
        return round(self.per_sample * n)

    def __str__(self) -> str:
        width = max(len(name) for name in [*self.by_name, "together"])
        rows = [
            f"{name.ljust(width)}  {size:12,.0f} bytes a sample" for name, size in [*self.by_name.items(), ("together", self.per_sample)]
        ]
        return "\n".join(rows)

    __repr__ = __str__


def estimate(kept: Mapping[str, Tensor], n: int) -> StreamEstimate:
    """Bytes a sample of what was kept of one batch.

    Args:
        kept: Hook name → tensor.
        n: Number of samples in the batch.

    Returns:
        The table.
    """
    sizes = {name: value.numel() * value.element_size() / max(n, 1) for name, value in kept.items()}
    return StreamEstimate(sizes, {name: tuple(value.shape) for name, value in kept.items()}, n)


def batch_size(cache: ActivationCache, names: Sequence[str] | None = None) -> int:
    """Number of samples in a batch.

    Args:
        cache: The batch.
        names: Hook names to look at; all by default.

    Returns:
        Size of the sample axis, which all activations that have one share.

    Raises:
        SelectorError: No activation is known to have a sample axis, or they differ in its size.
    """
    sizes = {name: cache[name].shape[cache.axes(name).index("sample")] for name in names or cache if "sample" in cache.axes(name)}
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"{name}: {size}" for name, size in sizes.items()) or "none"
        raise SelectorError(
            f"The number of samples of the batch cannot be told from the sample axes recorded ({found}). Name the axes with "
            "HookedModel(net, axes=...), or leave out what has another number of rows."
        )
    return next(iter(sizes.values()))
