"""Edits that put in values from elsewhere: the mean over samples, another sample, another run.

What they put in is always a new tensor, so a later operation in place, such as a ReLU, never writes into the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from mechfeat.errors import DtypeError, OptionError, SelectorError, ShapeError
from mechfeat.hooks.cache import ActivationCache
from mechfeat.hooks.edits import Edit, Index

AblationMethod = Literal["zero", "mean", "resample"]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Ablate(Edit):
    """Takes the information out of the selected part of an activation: sets it to zero, to its mean, or to another sample's value.

    The mean and the other samples come from ``reference``, or from the batch itself, as it is before this edit. ``**where`` selects what
    is replaced, never what is averaged: with ``sample=0`` the mean is still that of all samples.

    Resampling from the batch gives every sample the value of another one, by a random cyclic permutation. From a reference, sample i
    never takes row i (counted modulo the number of rows), unless there is one row only; so the reference may be the batch itself. The
    same seed pairs the same samples at every hook point and in every pass.

    Args:
        hook: Hook name or glob.
        method: ``"zero"``, ``"mean"`` or ``"resample"``.
        reference: The activation at this hook point on other inputs, in activation units. Its sizes are those of the activation, save for
            the sample axis and, with ``"mean"``, the axes in ``over``. It is moved to the activation's device.
        over: With ``"mean"``, the axes that are averaged. By default every position keeps a mean of its own, as in text of one
            template; for images ``("sample", "height", "width")`` gives one mean a channel.
        seed: Seed of the permutation.
        **where: Selection by axis; nothing selects everything.

    Raises:
        OptionError: The method is unknown, ``over`` is empty, or a reference is given to ``"zero"``.

    Source:
        Mean ablation: Wang et al. 2023, *Interpretability in the Wild*, section 2.1. Resampling: Chan et al. 2022, *Causal Scrubbing*.

    Example:
        >>> Ablate("conv2", channel=7)
        Ablate('conv2', channel=7)
        >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
        >>> Ablate("fc", method="mean", channel=0).apply(x, ("sample", "channel"))
        tensor([[ 2., 10.],
                [ 2., 30.]])
        >>> Ablate("fc", method="resample").apply(x, ("sample", "channel"))
        tensor([[ 3., 30.],
                [ 1., 10.]])
    """

    method: AblationMethod
    reference: Tensor | None
    over: tuple[str, ...]
    seed: int

    def __init__(
        self,
        hook: str,
        *,
        method: AblationMethod = "zero",
        reference: Tensor | None = None,
        over: Sequence[str] = ("sample",),
        seed: int = 0,
        **where: Index,
    ) -> None:
        super().__init__(hook, **where)
        if method not in ("zero", "mean", "resample"):
            raise OptionError("method", method, ("zero", "mean", "resample"))
        if method == "zero" and reference is not None:
            raise OptionError("reference", f"tensor{list(reference.shape)}", (None, "a tensor with method='mean' or 'resample'"))
        if not over or isinstance(over, str):
            raise OptionError("over", over, ("a tuple of axis names, such as ('sample',)",))
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "reference", reference)
        object.__setattr__(self, "over", tuple(over))
        object.__setattr__(self, "seed", seed)

    def changed(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        """Zero, the mean, or the values of other samples.

        Args:
            x: The activation.
            axes: Its axis names.

        Returns:
            A new tensor of the same shape.

        Raises:
            SelectorError: An axis that is averaged or resampled is not there, or a batch of one has no other sample.
            ShapeError: The reference does not fit, or holds no sample.
            DtypeError: The mean of a dtype that has none, or a reference of another dtype.
        """
        if self.method == "zero":
            return torch.zeros_like(x)
        varied = self.over if self.method == "mean" else ("sample",)
        absent = [a for a in varied if a not in axes]
        if absent:
            raise SelectorError(
                f"{self} needs the axis {absent[0]!r}, and the activation at this hook point has axes {dict(zip(axes, x.shape))}."
            )
        source = self._source(x, axes, varied)
        if self.method == "mean":
            if not (x.is_floating_point() or x.is_complex()):
                raise DtypeError(f"{self} needs a mean, and the activation is {x.dtype}. Resample it, or ablate to zero.")
            # A copy, since writing in place into an expanded tensor would write every sample at once.
            return source.mean([axes.index(a) for a in varied], keepdim=True).expand_as(x).clone()
        sample = axes.index("sample")
        if self.reference is None and x.shape[sample] == 1:
            raise SelectorError(f"{self} needs another sample, and this batch holds one. Give a reference=, or run more samples.")
        partner = _derangement(source.shape[sample], self.seed)
        rows = partner[torch.arange(x.shape[sample]) % max(len(partner), 1)]
        return source.index_select(sample, rows.to(x.device))

    def _source(self, x: Tensor, axes: tuple[str, ...], free: Sequence[str]) -> Tensor:
        if self.reference is None:
            return x
        fits = self.reference.ndim == x.ndim and all(a in free or m == n for a, m, n in zip(axes, self.reference.shape, x.shape))
        if not fits or not self.reference.numel():
            raise ShapeError(
                f"{self} has a reference of shape {tuple(self.reference.shape)}, and the activation at this hook point has axes"
                f" {dict(zip(axes, x.shape))}. Record the reference at this hook point; it may differ in {', '.join(free)} alone."
            )
        if self.reference.dtype != x.dtype:
            raise DtypeError(f"{self} has a reference of {self.reference.dtype} for an activation of {x.dtype}. Convert it with .to(x).")
        return self.reference.to(x.device)

    def _options(self) -> list[str]:
        shown = [] if self.method == "zero" else [f"method={self.method!r}"]
        shown += [] if self.reference is None else [f"reference{list(self.reference.shape)}"]
        shown += [f"over={self.over}"] if self.method == "mean" and self.over != ("sample",) else []
        return shown + ([f"seed={self.seed}"] if self.method == "resample" else [])


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Patch(Edit):
    """Puts in the activation of another run.

    Patching a run with its own activations changes no bit of its output.

    Attributes:
        source: The activation, as it stands at the same hook point in another run, in activation units: a tensor of the same shape and
            dtype, moved to the activation's device; or a cache, of which each hook point takes its own entry, so that ``hook`` may be a
            glob. ``**where`` selects in both runs alike.

    Source:
        Vig et al. 2020, *Causal Mediation Analysis for Interpreting Neural NLP*; Meng et al. 2022, *Locating and Editing Factual
        Associations in GPT*.

    Example:
        >>> Patch("fc", torch.zeros(2, 3), pos=-1)
        Patch('fc', source[2, 3], pos=-1)
        >>> Patch("fc", torch.tensor([[7.0, 8.0]]), channel=1).apply(torch.tensor([[1.0, 2.0]]), ("sample", "channel"))
        tensor([[1., 8.]])
    """

    source: Tensor | ActivationCache

    def __init__(self, hook: str, source: Tensor | ActivationCache, **where: Index) -> None:
        super().__init__(hook, **where)
        if not isinstance(source, Tensor | ActivationCache):
            raise OptionError("source", source, ("a tensor", "an ActivationCache"))
        object.__setattr__(self, "source", source)

    def at(self, name: str) -> "Patch":
        """The patch with the cache's entry for one hook point.

        Args:
            name: Hook name.

        Returns:
            A patch whose source is a tensor. Raises what looking the name up in the cache raises.
        """
        return self if isinstance(self.source, Tensor) else Patch(self.hook, self.source[name], **self.where)

    def changed(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        """The other run's activation.

        Args:
            x: The activation.
            axes: Its axis names.

        Returns:
            A copy of the source.

        Raises:
            ShapeError: The source has another shape.
        """
        source = self.source if isinstance(self.source, Tensor) else self.source[self.hook]
        if source.shape != x.shape:
            raise ShapeError(
                f"{self} has a source of shape {tuple(source.shape)}, and the activation at this hook point has axes"
                f" {dict(zip(axes, x.shape))}. Record the source at this hook point on inputs of the same shape."
            )
        return source.to(x.device, copy=True)  # a copy, since the model may go on to write into what it is given

    def _options(self) -> list[str]:
        source = self.source
        return [f"source{list(source.shape)}" if isinstance(source, Tensor) else f"cache of {len(source)}"]


def _derangement(n: int, seed: int) -> Int[Tensor, " n"]:
    """A random cyclic permutation: no fixed point from n = 2 on, and every pair of samples is equally likely."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")
    partner = torch.empty_like(order)
    partner[order] = order.roll(-1)
    return partner
