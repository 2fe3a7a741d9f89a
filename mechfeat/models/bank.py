"""Many toy models at once: every parameter has an instance axis, and no instance knows of the others."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import OptionError, ShapeError
from mechfeat.models.toy_spec import ToySpec, activation_function
from mechfeat.points import point

Init = Literal["linear", "xavier"]
Label = int | float | str | tuple[float, ...]


class ToyBank(nn.Module):
    """Instances of one toy model, with weights ``W [instance feature hidden]``.

    An instance's initial weights come from its own seed and nothing else: they are the same in a bank of one and in a bank of a
    thousand, in float32 and in float64, and on every device. Hook points: ``features``, ``hidden``, ``pre`` and ``out``.

    Args:
        spec: The model.
        n_instances: Instances, with seeds 0, 1, …; leave it out where ``seeds`` are given.
        seeds: One seed for each instance.
        init: ``"linear"``: as ``nn.Linear`` draws after ``torch.manual_seed(seed)``, uniform within one over the root of the fan-in (the
            output bias of a tied model takes the features as fan-in). ``"xavier"``: normal with variance 2 over the sum of the two sizes of
            one instance, biases 0. A tensor: values of ``W``, for each instance or for all; ``U`` starts equal to it, the rest at 0. A
            mapping: values by parameter name, the rest at 0.
        axes: Labels of the instance axis, which is their product, the last one fastest; ``{"seed": seeds}`` if None.
        dtype: Dtype of the parameters; torch's default if None.
        device: Device of the parameters.

    Raises:
        ShapeError: There is no instance, or a count, an axis or an initial value does not fit.
        OptionError: ``init`` is not known.

    Source:
        Elhage et al. 2022, *Toy Models of Superposition*.

    Example:
        >>> bank = ToyBank(ToySpec(5, 2), 100)
        >>> bank.W.shape, bank(torch.eye(5)).shape
        (torch.Size([100, 5, 2]), torch.Size([100, 5, 5]))
        >>> bool((bank[7].W == ToyBank(ToySpec(5, 2), seeds=[7]).W).all())
        True
    """

    W: Tensor

    def __init__(
        self,
        spec: ToySpec,
        n_instances: int | None = None,
        *,
        seeds: Iterable[int] | None = None,
        init: Init | Tensor | Mapping[str, Tensor] = "linear",
        axes: Mapping[str, Sequence[Label]] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.seeds = tuple(range(1 if n_instances is None else n_instances)) if seeds is None else tuple(int(s) for s in seeds)
        if not self.seeds:
            raise ShapeError("The bank was asked for no instance. Give n_instances of at least 1, or the seeds of at least one.")
        if n_instances is not None and n_instances != len(self.seeds):
            raise ShapeError(f"n_instances={n_instances}, and {len(self.seeds)} seeds were given. Give one of the two, or as many seeds.")
        self.axes = {"seed": self.seeds} if axes is None else {name: tuple(labels) for name, labels in axes.items()}
        if math.prod(len(labels) for labels in self.axes.values()) != len(self.seeds):
            found = " x ".join(f"{name} {len(labels)}" for name, labels in self.axes.items())
            raise ShapeError(f"The axes ({found}) label another number of instances than the {len(self.seeds)} of the bank.")
        for name, value in _initial(spec, self.seeds, init).items():
            self.register_parameter(name, nn.Parameter(value.to(device, dtype or torch.get_default_dtype()).contiguous()))

    @property
    def n_instances(self) -> int:
        """Number of instances."""
        return len(self.seeds)

    def __len__(self) -> int:
        return self.n_instances

    def __getitem__(self, index: int | slice | Sequence[int]) -> "ToyBank":
        """A bank of some instances, with copies of their weights.

        Args:
            index: A number for a bank of one, a slice, or numbers.

        Returns:
            The bank; its axis is the seed.

        Raises:
            ShapeError: A number is outside the bank, or none is left.
        """
        rows = [index] if isinstance(index, int) else list(range(self.n_instances)[index]) if isinstance(index, slice) else list(index)
        wrong = [i for i in rows if not -self.n_instances <= i < self.n_instances]
        if wrong or not rows:
            raise ShapeError(
                f"Instance {wrong[0]} was asked for, of {self.n_instances}." if wrong else f"{index!r} selects no instance of the bank."
            )
        values = {name: p.detach()[rows] for name, p in self.named_parameters()}
        return ToyBank(self.spec, seeds=[self.seeds[i] for i in rows], init=values, dtype=self.W.dtype, device=self.W.device)

    def along(self, axis: str) -> Float[Tensor, " instance"] | Float[Tensor, "instance feature"]:
        """The label of each instance on one axis, for options that differ between instances.

        Args:
            axis: Name of an axis with numbers, or tuples of numbers, for labels.

        Returns:
            ``[instance]``, or ``[instance feature]`` where labels are tuples.

        Raises:
            OptionError: There is no such axis.

        Example:
            >>> bank = ToyBank(ToySpec(5, 2), seeds=[0, 1, 0, 1], axes={"density": [0.1, 0.5], "seed": [0, 1]})
            >>> bank.along("density")
            tensor([0.1000, 0.1000, 0.5000, 0.5000])
        """
        if axis not in self.axes:
            raise OptionError("axis", axis, tuple(self.axes))
        place = list(self.axes).index(axis)
        labels = [row[place] for row in itertools.product(*self.axes.values())]
        return torch.tensor(labels, dtype=self.W.dtype, device=self.W.device)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{self.n_instances} instances, {self.spec.n_features} features, {self.spec.n_hidden} hidden"

    def forward(self, x: Float[Tensor, "... sample feature"]) -> Float[Tensor, "instance sample output"]:
        """Outputs of every instance.

        Args:
            x: ``[sample feature]``, the same for all, or ``[instance sample feature]``.

        Returns:
            One output for each instance and sample.

        Raises:
            ShapeError: The input has other sizes.
        """
        right = x.ndim in (2, 3) and x.shape[-1] == self.spec.n_features and (x.ndim == 2 or x.shape[0] in (1, self.n_instances))
        if not right:
            raise ShapeError(
                f"x has shape {list(x.shape)}. This bank takes [sample {self.spec.n_features}], the same for all instances, or "
                f"[{self.n_instances} sample {self.spec.n_features}]."
            )
        return outputs(self.spec, dict(self.named_parameters()), x, within=self)


def outputs(spec: ToySpec, values: Mapping[str, Tensor], x: Tensor | None, *, within: nn.Module | None = None) -> Tensor:
    """Outputs of instances with given parameters: the formula of :class:`ToySpec`.

    Args:
        spec: The model.
        values: Parameters by name, with an instance axis first.
        x: ``[sample feature]`` or ``[instance sample feature]``; None for the identity matrix, which passes no hook point of its own.
        within: The module whose hook points are passed.

    Returns:
        ``[instance sample output]``.
    """
    W = values["W"]
    U = W if spec.tied else values["U"]
    if spec.unit_norm:
        tiny = torch.finfo(W.dtype).tiny
        W, U = F.normalize(W, dim=-1, eps=tiny), F.normalize(U, dim=-1, eps=tiny)
    hidden = W if x is None else point(x, "features", within) @ W
    if spec.hidden_bias:
        hidden = hidden + values["b_hidden"][:, None]
    hidden = activation_function(spec.hidden_activation)(hidden)
    if spec.d_mlp:
        neurons = activation_function(spec.mlp_activation)(hidden @ values["W_in"] + values["b_in"][:, None])
        hidden = hidden + neurons @ values["W_out"] + values["b_out"][:, None]
    pre = point(hidden, "hidden", within) @ U.mT
    if spec.scale != 1:
        pre = pre * spec.scale
    if spec.out_bias:
        pre = pre + values["b"][:, None]
    if spec.shift:
        pre = pre + spec.shift
    return point(activation_function(spec.activation)(point(pre, "pre", within)), "out", within)


def _initial(spec: ToySpec, seeds: Sequence[int], init: Init | Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    shapes = spec.parameter_shapes()
    if isinstance(init, str):
        if init not in ("linear", "xavier"):
            raise OptionError("init", init, ["linear", "xavier", "a tensor", "a mapping of names to tensors"])
        draws = [_draw(spec, seed, init) for seed in seeds]
        return {name: torch.stack([draw[name] for draw in draws]) for name in shapes}
    if isinstance(init, Tensor):
        init = {"W": init} if spec.tied or spec.outputs != spec.n_features else {"W": init, "U": init}
    unknown = set(init) - set(shapes)
    if unknown:
        raise ShapeError(f"init names {sorted(unknown)}, and this model has the parameters {list(shapes)}.")
    found = {}
    for name, shape in shapes.items():
        full = (len(seeds), *shape)
        value = init.get(name, torch.zeros(full))
        if tuple(value.shape) not in (shape, full):
            raise ShapeError(f"The initial {name} has shape {list(value.shape)}; {list(shape)} or {list(full)} would fit.")
        found[name] = value.detach().expand(full).clone()
    return found


def _draw(spec: ToySpec, seed: int, init: str) -> dict[str, Tensor]:
    # Drawn in float32 on the CPU whatever the bank's dtype and device, so that a seed means one set of weights everywhere.
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in spec.parameter_shapes().items():
        if init == "xavier":
            std = math.sqrt(2 / sum(shape))
            found[name] = torch.zeros(shape) if len(shape) == 1 else torch.randn(shape, generator=generator, dtype=torch.float32) * std
            continue
        if len(shape) == 2:
            # nn.Linear holds [out in]; U is that already, the others are stored as [in out].
            transposed = name != "U"
            fan_in = shape[0] if transposed else shape[1]
            raw = torch.empty(shape[::-1] if transposed else shape, dtype=torch.float32)
        else:
            fan_in = {"b_hidden": spec.n_features, "b_in": spec.n_hidden, "b_out": spec.d_mlp}.get(name, 0)
            fan_in = fan_in or (spec.n_features if spec.tied else spec.n_hidden)
            raw, transposed = torch.empty(shape, dtype=torch.float32), False
        raw.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
        found[name] = raw.T if transposed else raw
    return found
