"""The hooked model: name hook points, record, edit, restore. Everything else is a function of what it hands out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mechfeat.errors import DtypeError, UnsupportedModelError
from mechfeat.hooks.cache import ActivationCache, Positions
from mechfeat.hooks.checkpointed import CheckpointAware
from mechfeat.hooks.description import Description, Surveyor, static_description
from mechfeat.hooks.edits import Edit
from mechfeat.hooks.fwd_hooks import FwdHooks, HookRef, as_edits
from mechfeat.hooks.inputs import call, signature
from mechfeat.hooks.names import HookName, NamesFilter, patterns
from mechfeat.hooks.recorder import Memory, Recorder
from mechfeat.hooks.shards import Shards, kept, write
from mechfeat.hooks.site import Site
from mechfeat.hooks.stream import Reduce, Session, StreamEstimate, batch_size, estimate, stream
from mechfeat.hooks.verify import Verification, verify
from mechfeat.hooks.weights import Weights


class HookedModel:
    """Wraps any ``nn.Module`` without owning, copying or changing it.

    Hooks exist only while a run or a ``with`` block is under way, so the module behaves the same with and without the
    wrapper, and its outputs are bit-equal. One wrapper may be used from several threads.

    One model differs by rounding: in eval mode without gradients, ``nn.TransformerEncoderLayer`` takes a fused path that calls
    no submodule, and torch leaves it as soon as a hook is attached. ``torch.backends.mha.set_fastpath_enabled(False)`` makes
    both runs take the same path.

    Of a ``DistributedDataParallel`` the module inside is wrapped: names are those of the plain model, and runs of the wrapper
    communicate with no other rank, so that one rank may record alone. Calls of the DDP module itself, which synchronise gradients,
    are edited as well.

    Args:
        module: The model. A compiled model is wrapped through the module inside it.
        axes: Axis names by hook name, for activations whose axes cannot be told from the module, such as
            ``{"mixer": ("sample", "channel", "pos")}``.

    Raises:
        DtypeError: ``module`` is no ``nn.Module``.
        UnsupportedModelError: Hooks would not fire, or not in this thread.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> model = HookedModel(net)
        >>> logits, cache = model.run_with_cache(torch.ones(5, 4), "1")
        >>> cache["1"].shape, cache.axes("1")
        (torch.Size([5, 3]), ('sample', 'channel'))
    """

    def __init__(self, module: "nn.Module | HookedModel", *, axes: Mapping[str, Sequence[str]] | None = None) -> None:
        if isinstance(module, HookedModel):
            axes = {**module._axes, **(axes or {})}
            module = module.module
        if not isinstance(module, nn.Module):
            raise DtypeError(f"HookedModel wraps a torch.nn.Module and was given a {type(module).__name__}.")
        if hasattr(module, "_orig_mod"):
            raise UnsupportedModelError(
                "This model is compiled: hooks added after compilation are ignored. "
                "Wrap the module inside it, HookedModel(model._orig_mod)."
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            inside: nn.Module = module.module
            module = inside
        if isinstance(module, nn.DataParallel):
            raise UnsupportedModelError(
                "nn.DataParallel runs copies in other threads, where hooks do not fire. "
                "Wrap the module inside it, HookedModel(model.module)."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                "A TorchScript model does not call hooks of its submodules. Wrap the eager module it was made from."
            )
        _check_not_compiled(module)
        self.module: nn.Module = module
        self._axes: dict[str, tuple[str, ...]] = {name: tuple(names) for name, names in (axes or {}).items()}
        self._memory = Memory()
        self._last_site: Site | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module itself; edits of an enclosing ``hooks`` block apply."""
        return self.module(*args, **kwargs)

    def __repr__(self) -> str:
        return f"HookedModel({type(self.module).__name__}, {len(self.hook_names())} hook points)"

    # --- name

    def hook_names(self) -> list[str]:
        """Names of the outputs of all modules, in order of definition, and of the points seen in earlier runs.

        Returns:
            Hook names. Inputs are addressed by ``name:in`` and are not listed.
        """
        return [*self._site().names(), *self._memory.points]

    def roles(self) -> dict[str, tuple[str, ...]]:
        """What the hook points of a known family of networks are for; ``@conv`` requests those with the role ``conv``.

        CNNs have ``conv norm act pool block_out``; transformers ``embed pos_embed resid_pre resid_mid resid_post attn_out
        mlp_pre mlp_post mlp_out final_norm logits``; perceptrons and toy models ``pre post hidden``.

        Returns:
            Role → hook names, in order of definition; without those the model lacks, and empty for an unknown model.
        """
        return dict(self._site().roles)

    def describe(self, x: Any = None, **kwargs: Any) -> Description:
        """The table of hook points: name, role, kind, axes, shape, calls, reached or not.

        Args:
            x: An input; a tuple is spread over the arguments, a mapping over the keyword arguments. Without it only names,
                roles and kinds are known. With it the model is called once, in the mode it is in and without gradients.
            **kwargs: Keyword arguments of the model.

        Returns:
            A table that prints itself.
        """
        site = self._site()
        if x is None and not kwargs:
            return static_description(site, tuple(self._memory.points))
        surveyor = Surveyor(site)
        with torch.no_grad(), surveyor.open():
            self._call(x, kwargs)
        self._memory.points.update(surveyor.points_seen)
        return surveyor.description()

    @property
    def weights(self) -> Weights:
        """The parameters under standard names, as live views."""
        return Weights(self.module)

    # --- record

    def run_with_cache(
        self, x: Any, names_filter: NamesFilter = None, *, grad: bool = False, clone: bool | None = None, **kwargs: Any
    ) -> tuple[Any, ActivationCache]:
        """Run the model to its end and record.

        Args:
            x: The input; a tuple is spread over the arguments, a mapping over the keyword arguments.
            names_filter: Hook names, globs or a predicate; by default the outputs of all modules and points.
            grad: Keep the graph, so that ``cache.gradients`` works.
            clone: Copy each value as it is recorded. By default a value is copied unless an earlier run showed that nothing
                overwrites it; ``False`` copies only what cannot be watched (inference mode, leaves
                of a graph), and raises where that would have been wrong.
            **kwargs: Keyword arguments of the model.

        Returns:
            The model's output, bit-equal to that of a plain call, and the cache.

        Raises:
            HookNameError: A name matches no hook point.
            EmptyGlobError: A glob or predicate selects none.
            PortError: A literal name addresses no single tensor.
            HookNotReachedError: A hook point asked for by its literal name did not fire.
            StaleActivationError: A value was overwritten in place, with ``clone=False``.
            GradientError: ``grad=True`` while gradients are switched off.
        """
        return self._record(x, names_filter, kwargs, grad=grad, clone=clone, stop=False)

    def record(
        self, x: Any, names_filter: NamesFilter = None, *, grad: bool = False, clone: bool | None = None, **kwargs: Any
    ) -> ActivationCache:
        """Record, and stop the forward pass after the last requested hook point.

        How often a hook point fires is learnt from the first complete run on inputs of the same shape; until then, and for
        names without call index, the pass runs to its end. ``"conv1#0"`` stops at the first call, always. Where the number of
        calls depends on values, such as a loop until convergence, use :meth:`run_with_cache` or give the call.

        Args:
            x: The input, as in :meth:`run_with_cache`.
            names_filter: Hook names, globs or a predicate.
            grad: Keep the graph.
            clone: As in :meth:`run_with_cache`.
            **kwargs: Keyword arguments of the model.

        Returns:
            The cache. Raises what :meth:`run_with_cache` raises.
        """
        return self._record(x, names_filter, kwargs, grad=grad, clone=clone, stop=True)[1]

    # --- stream

    @contextmanager
    def attach(self, names_filter: NamesFilter = None, *, stop: bool = True, clone: bool | None = None) -> Iterator[Session]:
        """Hooks that stay in place over many batches.

        Gives what :meth:`record` gives, one cache a call, and registers hooks once instead of once a call. Other calls of the model
        meanwhile are not recorded; edits of an enclosing ``hooks`` block apply.

        Args:
            names_filter: Hook names, globs or a predicate, as in :meth:`run_with_cache`.
            stop: End each pass after the last requested hook point, as :meth:`record` does.
            clone: As in :meth:`run_with_cache`.

        Yields:
            A session: ``session(x, **kwargs)`` returns the :class:`ActivationCache` of one batch, and raises what
            :meth:`run_with_cache` raises. An error leaves it usable.

        Example:
            >>> model = HookedModel(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
            >>> with model.attach("1") as session:
            ...     [session(x)["1"].shape for x in torch.ones(2, 5, 4)]
            [torch.Size([5, 3]), torch.Size([5, 3])]
        """
        with self._session(names_filter, clone=clone, stop=stop).opened() as session:
            yield session

    def stream(
        self,
        loader: Iterable[Any],
        names_filter: NamesFilter = None,
        *,
        reduce: Reduce = None,
        inputs: Callable[[Any], Any] | None = None,
        progress: bool = False,
    ) -> Iterator[Any]:
        """Record batch after batch, without gradients, holding one batch at a time.

        Args:
            loader: Yields batches. A tuple is spread over the model's arguments and a mapping over its keyword arguments; a list of
                one, as ``DataLoader(TensorDataset(x))`` yields it, is that one.
            names_filter: Hook names, globs or a predicate.
            reduce: A function of the batch's cache, whose result is yielded; ``"mean"`` for the mean over all samples so far, a
                :class:`RunningMean`, of which the last is that of the whole data set; None for the cache itself.
            inputs: From a batch to the model's input, where a batch is more than that: ``lambda batch: batch[0]``.
            progress: Show a bar.

        Returns:
            An iterator with one value a batch. Hooks are in place from its first step to its end, or until it is closed.

        Raises:
            OptionError: ``reduce`` is none of the above, or a batch is a list of several and ``inputs`` is not given.
            SelectorError: ``reduce="mean"``, and an activation has no known sample axis, or its shape changes between batches.
        """
        return stream(self._session(names_filter), loader, reduce, inputs, progress)

    def stream_to_disk(
        self,
        loader: Iterable[Any],
        names_filter: NamesFilter,
        folder: str | Path,
        *,
        positions: Positions | None = None,
        dtype: torch.dtype | None = None,
        inputs: Callable[[Any], Any] | None = None,
        progress: bool = False,
    ) -> Shards:
        """Record batch after batch into a folder, one safetensors file a batch, without gradients.

        A run that was cut short goes on where it stopped when it is called again with the same arguments: batches whose shard exists are
        skipped, except the first, which is recorded again and compared. Model, weights, names, options and the inputs of all
        batches must be the same. Edits of an enclosing ``hooks`` block apply.

        Args:
            loader: Yields the same batches in the same order each time; what a batch can be is said in :meth:`stream`.
            names_filter: Hook names, globs or a predicate.
            folder: Where to write; made if absent.
            positions: As in ``cache.samples``, to store a table ``[sample channel]`` and which input each row came from; None for
                whole activations.
            dtype: Floating-point values are converted to it, such as ``torch.float16``.
            inputs: From a batch to the model's input.
            progress: Show a bar.

        Returns:
            The reader, which :meth:`Shards.open` gives as well.

        Raises:
            ResumeError: The folder holds another run.
            FileFormatError: The folder holds files that cannot be read.
            NonFiniteError: A finite value is beyond the range of ``dtype``.
            HookNotReachedError: A batch did not reach a hook point that the first one reached.
            ShapeError: A batch reached a hook point that the first one did not.
            SelectorError: The number of samples in a batch cannot be told.
        """
        session = self._session(names_filter)
        request = [p.text for p in patterns(names_filter, [*self._site().names(), *self._memory.points])]
        return write(self.module, session, loader, folder, request, positions=positions, dtype=dtype, inputs=inputs, progress=progress)

    def estimate(
        self,
        x: Any,
        names_filter: NamesFilter = None,
        *,
        positions: Positions | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> StreamEstimate:
        """Bytes a sample that :meth:`stream` will hand out or :meth:`stream_to_disk` write, measured on one input without gradients.

        Args:
            x: A small batch.
            names_filter: Hook names, globs or a predicate.
            positions: As in :meth:`stream_to_disk`.
            dtype: As in :meth:`stream_to_disk`.
            **kwargs: Keyword arguments of the model.

        Returns:
            A table that prints itself; ``.per_sample`` and ``.total(n)`` in bytes.

        Raises:
            SelectorError: The number of samples in the batch cannot be told.
        """
        with torch.no_grad():
            cache = self.record(x, names_filter, **kwargs)
        return estimate(kept(cache, positions, dtype), batch_size(cache))

    # --- edit

    @contextmanager
    def hooks(self, *edits: Edit, fwd_hooks: FwdHooks = ()) -> Iterator["HookedModel"]:
        """Edits in place for the duration of a ``with`` block, for calls of the wrapper and of the module alike.

        Args:
            *edits: Applied in order; blocks nest, the outer one first.
            fwd_hooks: Pairs of hook name (or predicate over names) and function ``fn(activation, hook=...)``, as in
                TransformerLens, on a copy; where it returns None, the copy is taken, changed or not.

        Yields:
            This model.

        Raises:
            HookNameError: A name matches no hook point.
            EmptyGlobError: A glob or predicate selects none.
            EditNotFiredError: A forward pass completed inside the block, and an edit was never applied.
            AmbiguousCallError: A hook point named without call index fired a second time.
            UnsupportedModelError: An edit falls into a region of activation checkpointing while gradients are on.
            OptionError: There is nothing to apply.
        """
        site = self._site()
        every = [*edits, *(as_edits(fwd_hooks, self.hook_names()) if fwd_hooks else ())]
        if not every:
            from mechfeat.errors import OptionError

            raise OptionError("edits", [], ("at least one edit or forward hook",))
        editor = CheckpointAware(site, every, tuple(self._memory.points))
        with editor.open():
            yield self
        self._memory.points.update(editor.points_seen)
        editor.check_fired()

    def run_with_hooks(self, x: Any, *edits: Edit, fwd_hooks: FwdHooks = (), **kwargs: Any) -> Any:
        """Run the model once with edits.

        Args:
            x: The input, as in :meth:`run_with_cache`.
            *edits: Applied in order.
            fwd_hooks: As in :meth:`hooks`.
            **kwargs: Keyword arguments of the model.

        Returns:
            The model's output.
        """
        with self.hooks(*edits, fwd_hooks=fwd_hooks):
            return self._call(x, kwargs)

    # --- check

    def verify(self, x: Any, names_filter: NamesFilter = None, **kwargs: Any) -> Verification:
        """Show that recording changes nothing and records what passed, on one input.

        The output of a plain call is compared with that of two recorded ones, and each recorded value with a copy taken by plain
        torch hooks. Buffers and random number generators are put back before each run and at the end. The runs take place in the
        mode the model is in and under the caller's gradient mode; edits of an enclosing ``hooks`` block apply to all of them.

        Args:
            x: The input, as in :meth:`run_with_cache`; each run gets a copy.
            names_filter: Hook names, globs or a predicate; by default the outputs of all modules and points.
            **kwargs: Keyword arguments of the model.

        Returns:
            A table that prints itself; ``.equal`` says whether everything is.

        Raises:
            NondeterministicModelError: Two plain runs differ, so that nothing can be compared.

        Cost:
            Five forward passes, and a copy of all activations.
        """
        site = self._site()
        requests = [site.canonical(p) for p in patterns(names_filter, [*site.names(), *self._memory.points])]

        def plain(x: Any) -> Any:
            return self._call(x, kwargs)

        def recorded(x: Any) -> tuple[Any, ActivationCache]:
            return self.run_with_cache(x, names_filter, **kwargs)

        return verify(self.module, plain, recorded, requests, x)

    # --- inside

    def _site(self) -> Site:
        site = self._last_site
        if site is None or not site.is_current():
            site = self._last_site = Site(self.module, self._axes)
        return site

    def _call(self, x: Any, kwargs: Mapping[str, Any]) -> Any:
        return call(self.module, x, kwargs)

    def _record(
        self, x: Any, names_filter: NamesFilter, kwargs: Mapping[str, Any], *, grad: bool, clone: bool | None, stop: bool
    ) -> tuple[Any, ActivationCache]:
        recorder = self._recorder(names_filter, grad=grad, clone=clone, stop=stop, kind=self._kind(x, kwargs))
        with recorder.open():
            out = recorder.run(lambda: self._call(x, kwargs))
        return out, recorder.finish()

    def _recorder(self, names_filter: NamesFilter, *, grad: bool = False, clone: bool | None, stop: bool, kind: object = None) -> Recorder:
        site = self._site()
        key = (names_filter,) if names_filter is None or isinstance(names_filter, str) else None
        selection = site.selection(key, lambda: patterns(names_filter, [*site.names(), *self._memory.points]))
        return Recorder(site, selection, self._memory, grad=grad, clone=clone, signature=kind, stop=stop)

    def _kind(self, x: Any, kwargs: Mapping[str, Any]) -> object:
        return self.module.training, signature(x), signature(kwargs)

    def _session(self, names_filter: NamesFilter, *, clone: bool | None = None, stop: bool = True) -> Session:
        return Session(self._recorder(names_filter, clone=clone, stop=stop), self._call, self._kind)


def _check_not_compiled(module: nn.Module) -> None:
    found = [repr(path) if path else "The model itself" for path, m in module.named_modules() if m._compiled_call_impl is not None]
    if found:
        raise UnsupportedModelError(
            f"{', '.join(found)}: compiled in place by `.compile()`, so what hooks do would be compiled with it. "
            "Wrap the model before that, or set `_compiled_call_impl = None` there to run it uncompiled."
        )


def unwrap(model: nn.Module | HookedModel) -> nn.Module:
    """The module itself, whichever of the two was given.

    Args:
        model: A module or its wrapper.

    Returns:
        The module.

    Raises:
        DtypeError: It is neither.
    """
    if isinstance(model, HookedModel):
        return model.module
    if isinstance(model, nn.Module):
        return model
    raise DtypeError(f"A torch.nn.Module or a HookedModel is needed, and a {type(model).__name__} was given.")


def hooked(model: nn.Module | HookedModel) -> HookedModel:
    """The wrapper, whichever of the two was given.

    Args:
        model: A module or its wrapper.

    Returns:
        The wrapper.
    """
    return model if isinstance(model, HookedModel) else HookedModel(model)


__all__ = ["HookName", "HookRef", "HookedModel", "hooked", "unwrap"]
