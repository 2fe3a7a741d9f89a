"""Which parameter was used where: capture at the call that receives it.

A function mode sees every torch call of one forward pass. A call that receives a trainable parameter and has a rule is
tapped: an in-place identity is put on its output, and when the backward pass over activations reaches it, the rule turns the
gradient there into a factor of the parameter's gradient. Uses are grouped by the identity of the parameter. A parameter's
factors are handed on when its last use has been reached, and dropped. No weight gradient is ever asked from autograd.
"""

import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mechfeat.ntk.attention import multi_head
from mechfeat.ntk.call_checks import check_dropout, check_statistics
from mechfeat.ntk.factors import Dense, Factor, Outer, placed
from mechfeat.ntk.rules import Call, Unfit, Use, rule_for
from mechfeat.ntk.substitutes import faster
from mechfeat.ntk.taps import Deaf, Room, quiet, tapped
from mechfeat.ntk.views import Views

Sink = Callable[[str, list[Factor]], None]

# What may take a parameter alone and return it with an axis of samples.
ALONE = {
    torch.nn.functional.embedding, torch.broadcast_to, torch.Tensor.__getitem__, torch.Tensor.broadcast_to, torch.Tensor.expand,
    torch.Tensor.expand_as, torch.Tensor.repeat,
}  # fmt: skip
IN_CACHE = 2 << 20  # bytes of one layer's gradients, all outputs of a pass together, up to which vmapped passes are faster


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters a kernel is over: those that require a gradient, each once, under its first name.

    Args:
        module: The model.

    Returns:
        Name and parameter.
    """
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


class Capture:
    """One forward pass with its taps, and the backward pass over activations that feeds them.

    Args:
        module: The model; it is run, and left as it was.
        n: Number of samples in the batch.
        banned: Parameters that rules shall leave to the exact path, with the reason.
        fold: Contract a bias with its weight, where both have that one use.

    Attributes:
        unfit: Parameters that no rule covers, with the reason.
        used: Parameters covered by rules, with the names of the functions that received them, in order of the calls.
        unused: Parameters that no call received.
        log: What was met, call by call: a fingerprint of the pass.
        kept: Address and bytes of the storages that rules read when the gradient arrives.
        turned: Identity and bytes of weights that may be laid out anew for the backward pass.
        building: Seconds spent on making factors of gradients.
        folded: Bias → weight, where one contraction does both.
    """

    def __init__(self, module: nn.Module, n: int, banned: dict[str, str], fold: bool = False) -> None:
        self.module, self.n, self.fold = module, n, fold
        self.folded: dict[str, str] = {}
        self.building = 0.0
        self.kept: dict[int, int] = {}
        self.turned: dict[int, int] = {}
        parameters = trainable(module)
        self.name_of = {id(p): name for name, p in parameters.items() if p.numel()}  # one without entries has no part
        self.unfit = dict(banned)
        self.used: dict[str, list[str]] = {}
        self.log: list[tuple[object, ...]] = []
        self._views = Views(p for p in parameters.values() if p.numel())
        self._constant = {id(t) for t in (*module.parameters(), *module.buffers())}
        one = next(iter(parameters.values()))
        self._anchor = torch.zeros((), requires_grad=True, device=one.device)
        self._dtype = one.dtype
        self._taps: list[list[Use]] = []
        self._shapes: list[tuple[int, ...]] = []
        self._bytes: list[int] = []
        self._stored: list[tuple[list[Use], Tensor, int]] = []
        self._sink: Sink | None = None
        self._waiting: dict[int, Room] = {}
        self._at = 0
        self._open: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._with_bias: set[str] = set()
        self._head: int | None = None
        self._past: int | None = None
        self._unit = False
        self._factors: dict[str, list[Factor]] = {}
        self._outputs = 0
        self._done: set[str] = set()
        self._failure: Exception | None = None
        self._computed = _Computed()

    @property
    def unused(self) -> list[str]:
        """Parameters that no call received."""
        return [name for name in self.name_of.values() if name not in self.used and name not in self.unfit]

    # --- forward

    def forward(self, x: Any) -> Any:
        """Run the model and place the taps.

        Args:
            x: Its input.

        Returns:
            Its output, with graph.
        """
        with torch.enable_grad(), _Watch(self):
            y = self.module(x.clone())  # a model may overwrite its input
        self._computed = _Computed()
        for uses, t, version in self._stored:
            if t._version != version:
                self._give_up([u.parameter for u in uses], None, "an argument of its call is overwritten in place later")
        self._stored.clear()
        self._views = Views(p for p in trainable(self.module).values() if p.numel())  # views are not needed any more
        self._head = getattr(y.grad_fn, "tap", None) if isinstance(y, Tensor) and y.ndim == 2 else None
        return y

    def find_hidden(self, y: Tensor) -> None:
        """Give up parameters that the output depends on although no torch function was seen to receive them.

        A custom ``autograd.Function`` takes them so.

        Args:
            y: Output of :meth:`forward`.
        """
        leaves = {id(node.variable) for node in _nodes_behind(y) if hasattr(node, "variable")}
        unused = set(self.unused)
        self._give_up(
            [p for p in self.module.parameters() if id(p) in leaves and self.name_of.get(id(p)) in unused],
            None,
            "it is used out of sight of torch functions",
        )

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Handle one torch call of the forward pass.

        Args:
            function: What is called.
            args: Positional arguments.
            kwargs: Keyword arguments.

        Returns:
            What the call returns, tapped where a rule covers it.
        """
        owned = [t for t in _tensors((args, kwargs)) if id(t) in self._views]
        check_dropout(function, args, kwargs)
        check_statistics(function, args, kwargs)
        run = faster(function, args, kwargs)
        if function is torch.nn.functional.linear and len(args) > 1 and isinstance(args[1], nn.Parameter):
            self.turned[id(args[1])] = args[1].numel() * args[1].element_size()
        tensors = list(_tensors((args, kwargs)))
        bare = bool(tensors) and all(id(t) in self._views or id(t) in self._constant or t in self._computed for t in tensors)
        if not owned:
            out = run(*args, **kwargs)
            if bare:
                self._computed.add(out)
            return out
        rule = rule_for(function)
        if rule is None and function is torch.nn.functional.multi_head_attention_forward:
            with _Watch(self):
                return multi_head(*args, **kwargs)
        self._give_up([t for t in owned if self._views.overwritten(t)], None, "a view of it is overwritten in place")
        out = run(*args, **kwargs)
        if not any(t.requires_grad for t in _tensors(out)):
            return out  # a shape, a dtype, or a detached copy: no gradient flows
        name = getattr(function, "__name__", str(function))
        if name == "__get__":
            name = "an attribute such as .T"
        bare = bare and function not in ALONE
        if bare:
            self._computed.add(out)
        try:
            if rule is None or not isinstance(out, Tensor):
                raise Unfit("no rule")
            if bare:
                raise Unfit("it receives parameters alone")  # an axis as long as the batch would be no sample axis
            uses = [u for u in rule(Call(args, kwargs, out, self.n, self._views, name)) if id(u.parameter) in self._views]
        except Unfit as reason:
            if self._views.take(function, args, kwargs, out):
                return out
            return self._give_up(owned, out, f"{name} has no rule" if rule is None else f"{name}: {reason}")
        covered = {id(u.parameter) for u in uses}
        missed = [t for t in owned if id(t) not in covered]
        if missed:
            self._give_up(missed, out, f"{name}: its rule does not cover this argument")
        uses = [self._of_parameter(u) for u in uses]
        for use in uses:
            parameter = self.name_of[id(use.parameter)]
            self.used.setdefault(parameter, []).append(name)
            self._calls[parameter] = self._calls.get(parameter, 0) + 1
        places = [(self.name_of[id(u.parameter)], u.place and u.place.key) for u in uses]
        self.log.append((name, *places, *out.shape[1:]))
        out_tapped = self._tap(out, uses)
        self._stored += [(uses, t, t._version) for t in _tensors((args, kwargs)) if not t.is_inference() and t is not out]
        self.kept |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors((args, kwargs))}
        return out_tapped

    def _of_parameter(self, use: Use) -> Use:
        """The use of a view as that of its parameter."""
        view = self._views.of(use.parameter)
        whole = view.parameter is use.parameter and use.order is None
        place = None if whole else view.place.permuted(use.order or range(use.parameter.ndim))
        of = use.bias_of  # a bias goes with its weight only where both are whole
        together = place is None and of is not None and id(of) in self.name_of
        return replace(use, parameter=view.parameter, place=place, bias_of=of if together else None)

    def _give_up(self, owned: Iterable[Tensor], out: Any, reason: str) -> Any:
        for t in owned:
            name = self.name_of[id(self._views.of(t).parameter)]
            self.unfit.setdefault(name, reason)
            self.log.append((reason, name))
        return out

    def _tap(self, out: Tensor, uses: list[Use]) -> Tensor:
        if out._is_view():
            out = out.clone()  # an in-place identity on a view would have to rebase the graph of its base
        self._taps.append(uses)
        self._shapes.append(tuple(out.shape))
        self._bytes.append(out.numel() * out.element_size())
        return tapped(out, self._anchor, self, len(self._taps) - 1)

    # --- backward

    def backward(self, y: Float[Tensor, "n o"], sink: Sink, rows: Float[Tensor, "row o"] | None = None) -> None:
        """Send the unit gradient of every output back through the activations.

        Outputs go one by one, or a few at a time in a vmapped pass where the activations are small; where an operation has no batching
        rule, they go one by one.

        Args:
            y: Output of :meth:`forward`, flattened to one axis of outputs.
            sink: Called once for each parameter that rules cover and the output depends on, with the factors of its uses.
            rows: Combinations of the outputs to send in their place, past the :attr:`head`, whose own use is left out; the pass may then
                be repeated with others.
        """
        seeds = torch.eye(y.shape[1], dtype=y.dtype, device=y.device) if rows is None else rows
        self._sink, self._outputs, self._unit = sink, len(seeds), rows is None
        self._past = None if rows is None else self._head
        self._done = set()
        if y.requires_grad:
            self._reset()
            step = self.at_once(len(seeds), self._bytes)
            try:
                self._send(y, seeds, step)
            except Deaf:
                self._reset()  # what was handed on is complete, and is not handed on again
                self._send(y, seeds, 1)
        for tap in list(self._waiting):
            self._complete(tap)  # some outputs do not reach it
        for name in [n for n, left in self._open.items() if left and self._factors.get(n)]:
            self._deliver(name)  # some uses do not reach the output
        self._sink = None  # it may know this capture, and what two know of each other is freed late
        if rows is None:
            self.release()

    def release(self) -> None:
        """Forget the taps and all that they hold."""
        self._taps.clear()
        self._factors.clear()
        self._waiting.clear()

    @cached_property
    def head(self) -> tuple[tuple[str, ...], Tensor, Float[Tensor, "n k"], bool] | None:
        """The linear layer whose outputs are the model's, if no other call receives its bias.

        Returns:
            Names of weight and, if it has one, bias; the weight ``[o k]``; the layer's inputs; whether other calls receive the weight.
        """
        uses = [] if self._head is None else sorted(self._taps[self._head], key=lambda u: u.bias_of is not None)
        names = tuple(self.name_of[id(u.parameter)] for u in uses)
        if not 1 <= len(uses) <= 2 or any(name in self.unfit for name in names) or any(self._calls[b] != 1 for b in names[1:]):
            return None
        W = uses[0].parameter
        if W.ndim != 2 or any(u.bias_of is not W for u in uses[1:]) or uses[0].bias_of is not None:
            return None
        if any(u.parameter is W and u.place is not None for i, others in enumerate(self._taps) if i != self._head for u in others):
            return None  # a part of the weight, or its entries in other places, would meet the wrong rows of the head
        shape = self._shapes[self._head or 0]
        with torch.no_grad():
            factor = placed(uses[0].factor(W.new_zeros(()).expand(1, *shape)), uses[0].place)
        if (
            not isinstance(factor, Outer)
            or factor.place
            or factor.turned
            or factor.right.shape[1] != 1
            or W.shape != (shape[1], factor.right.shape[2])
        ):
            return None
        return names, W, factor.inputs[:, 0], self._calls[names[0]] != 1

    @staticmethod
    def at_once(o: int, sizes: Iterable[float | int]) -> int:
        """How many outputs go through one backward pass.

        Args:
            o: Outputs of the model.
            sizes: Bytes of one output's gradient at each tap.

        Returns:
            Their number.
        """
        # Memory, not arithmetic, limits a vmapped pass: gradients that outgrow the cache run at half the rate of one output after
        # the other. Small ones gain from large products and few calls.
        return max(1, min(o, int(IN_CACHE // max(1.0, *sizes, 1.0))))

    def sizes(self) -> list[tuple[int, int]]:
        """Bytes of one output's gradient at each tap, and of what is kept of it until all outputs have been sent."""
        found = []
        for uses, size, shape in zip(self._taps, self._bytes, self._shapes):
            formed = sum(u.parameter.numel() * u.parameter.element_size() * shape[0] for u in uses)
            found.append((size, formed if all(u.small for u in uses) else size))
        return found

    def factors_of(self, y: Tensor, past_head: bool = False) -> dict[str, list[Factor]]:
        """Factors as the backward pass builds them, for one random combination of the outputs: their shapes are the plan.

        Args:
            y: Output of :meth:`forward`.
            past_head: Leave out the use of the :attr:`head`.

        Returns:
            Parameter name → factors of its uses.
        """
        self._past = self._head if past_head else None
        found: dict[str, list[Factor]] = {}
        self._sink, self._outputs, self._unit = found.__setitem__, 1, True
        if y.requires_grad:
            self._reset()
            v = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0), device="cpu").to(y.device)
            torch.autograd.grad(y, self._anchor, v, allow_unused=True)
        for name in [n for n, left in self._open.items() if left and self._factors.get(n)]:
            self._deliver(name)
        self._sink = None
        self.release()
        return found

    def _reset(self) -> None:
        self._waiting.clear()
        self._factors.clear()
        self._open = {}
        for tap, uses in enumerate(self._taps):
            for use in uses if tap != self._past else ():
                name = self.name_of[id(use.parameter)]
                if name not in self.unfit and name not in self._done:
                    self._open[name] = self._open.get(name, 0) + 1
        self.folded = self.foldable()
        self._with_bias = set(self.folded.values())

    def foldable(self) -> dict[str, str]:
        """Biases that one contraction can do together with their weight: both have one use, in the same call.

        Returns:
            Bias → weight.
        """
        if not self.fold:
            return {}
        found: dict[str, str] = {}
        for tap, uses in enumerate(self._taps):
            for use in uses if tap != self._past else ():
                names = [self.name_of.get(id(p), "") for p in (use.parameter, use.bias_of)]
                once = all(name not in self.unfit and self._calls.get(name) == 1 for name in names)
                if once and names[0] not in self._done and any(u.parameter is use.bias_of for u in uses):
                    found[names[0]] = names[1]
        return found

    def _send(self, y: Tensor, seeds: Tensor, step: int) -> None:
        n, o = y.shape

        def one(seed: Tensor) -> Tensor:
            torch.autograd.grad(y, self._anchor, seed.expand(n, o), retain_graph=True, allow_unused=True)
            return seed.sum()

        with quiet():
            for self._at in range(0, len(seeds), step):
                if step == 1:
                    one(seeds[self._at])
                    continue
                try:
                    torch.func.vmap(one)(seeds[self._at : self._at + step])
                except RuntimeError as error:
                    if self._failure is not None:  # a contraction failed, and what it began cannot be begun again
                        raise self._failure from None
                    if isinstance(error, torch.OutOfMemoryError):
                        raise
                    raise Deaf from error

    def arrived(self, tap: int, g: Float[Tensor, "o ..."]) -> None:
        """Take the gradient at a tap, for one or several outputs.

        Args:
            tap: Which tap.
            g: The gradients, outputs first.
        """
        uses = self._wanted(tap) if tap != self._past else []
        if not uses:
            return
        with torch.no_grad():
            if len(g) == self._outputs:
                self._build(tap, g)
                return
            if tap not in self._waiting:
                self._waiting[tap] = Room(uses if all(u.small for u in uses) else [], set(range(self._outputs)))
            room = self._waiting[tap]
            room.take(g, self._at)
            if not room.missing:
                self._complete(tap)

    def _wanted(self, tap: int) -> list[Use]:
        names = [(self.name_of[id(u.parameter)], u) for u in self._taps[tap]]
        return [u for name, u in names if name in self._open and name not in self.folded]

    def _complete(self, tap: int) -> None:
        room = self._waiting.pop(tap)
        pieces = room.whole()
        with torch.no_grad():
            if not room.uses:
                self._build(tap, pieces[0].movedim(1, 0))
            for use, piece in zip(room.uses, pieces):
                self._keep(use, placed(Dense(piece), use.place))

    def _build(self, tap: int, g: Float[Tensor, "o ..."]) -> None:
        for use in sorted(self._taps[tap], key=lambda u: u.bias_of is not None):  # a weight decides whether its bias is folded
            name = self.name_of[id(use.parameter)]
            if name not in self._open or name in self.folded:
                continue
            start = time.perf_counter()
            factor = placed(use.factor(g), use.place)
            self.building += time.perf_counter() - start
            if isinstance(factor, Outer):
                if name in self._with_bias:
                    factor = factor.with_bias()
                if self._unit and tap == self._head and factor.left.shape[2] == 1:
                    factor = replace(factor, unit=True)
            elif name in self._with_bias:  # its gradient is no outer product
                self.folded = {bias: weight for bias, weight in self.folded.items() if weight != name}
            self._keep(use, factor)

    def _keep(self, use: Use, factor: Factor) -> None:
        name = self.name_of[id(use.parameter)]
        self._factors.setdefault(name, []).append(factor)
        self._open[name] -= 1
        if not self._open[name]:
            self._deliver(name)

    def _deliver(self, name: str) -> None:
        assert self._sink is not None
        self._done.add(name)
        self._open[name] = 0
        try:
            with torch.no_grad():
                self._sink(name, self._factors.pop(name))
        except Exception as error:
            self._failure = error
            raise


class _Computed:
    """The tensors that are computed from parameters and buffers alone, and so have no axis of samples."""

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Tensor]] = {}

    def add(self, out: Any) -> None:
        """Add what a call returned."""
        for t in _tensors(out):
            self._known[id(t)] = weakref.ref(t)

    def __contains__(self, t: Tensor) -> bool:
        known = self._known.get(id(t))
        return known is not None and known() is t


class _Watch(TorchFunctionMode):
    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self._capture = capture

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return self._capture.call(func, args, kwargs or {})


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from _tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)


def _nodes_behind(y: Tensor) -> Iterator[Any]:
    """The nodes of the graph that an output depends on.

    Yields:
        Each node once.
    """
    seen, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo += [n for n, _ in node.next_functions]
