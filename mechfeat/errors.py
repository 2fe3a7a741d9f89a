"""What can go wrong, as a tree of exceptions.

Every error derives from :class:`MechfeatError` and from the built-in a caller would expect, so ``except ValueError`` keeps
working. A message states what was asked, what was found, what would be right, and the next step; the same facts are
attributes of the exception. ``docs/errors/`` has a page for each class.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def closest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Names most like ``name``, best first.

    Args:
        name: What was asked for.
        known: What exists.
        n: At most this many.

    Returns:
        Up to ``n`` members of ``known``.

    Example:
        >>> closest("conv1x", ["conv1", "conv2", "fc"])
        ['conv1', 'conv2']
    """
    return difflib.get_close_matches(name, list(known), n=n, cutoff=0.4)


def _rebuild(cls: type["MechfeatError"], args: tuple[Any, ...], state: dict[str, Any]) -> "MechfeatError":
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class MechfeatError(Exception):
    """Base of every error that mechfeat raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Constructors take facts, not the message, so the default (re-call the constructor with args) would fail in worker processes.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class ShapeError(MechfeatError, ValueError):
    """A tensor has a shape, an axis or a size that does not fit."""


class DtypeError(MechfeatError, TypeError):
    """A tensor has a dtype that does not fit, or something is not a tensor at all."""


class DeviceError(MechfeatError, ValueError):
    """Tensors that must meet are on different devices."""


class NonFiniteError(MechfeatError, ValueError):
    """NaN or infinity where a finite number is needed."""


class OptionError(MechfeatError, ValueError):
    """An option has a value that is not among those it can take.

    Attributes:
        option: Name of the option.
        found: The value given.
        allowed: The values it can take.
    """

    def __init__(self, option: str, found: object, allowed: Sequence[object]) -> None:
        self.option, self.found, self.allowed = option, found, tuple(allowed)
        super().__init__(f"{option}={found!r} is not known. It can be {', '.join(repr(a) for a in allowed)}.")


class DegenerateNullError(OptionError):
    """A metric cannot differ between the weights and their null, so comparing them says nothing.

    Attributes:
        metric: The metric asked for.
        option: Always ``"null"``.
        found: The null asked for.
        allowed: Nulls under which the metric varies; empty where the weights leave none.
    """

    def __init__(self, metric: str, null: str, allowed: tuple[str, ...], reason: str) -> None:
        super().__init__("null", null, allowed)
        self.metric = metric
        advice = f"Use null={' or '.join(map(repr, allowed))}." if allowed else "The metric alone, without a null, still exists."
        self.args = (f"metric={metric!r} takes one and the same value on every draw of null={null!r}: {reason}. {advice}",)


class HookNameError(MechfeatError, LookupError):
    """A name matches no hook point.

    Attributes:
        name: The name asked for.
        known: The hook names that exist.
    """

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name, self.known = name, tuple(known)
        super().__init__(
            f"No hook point matches {name!r} among the {len(self.known)} in this model. {_near(name, self.known)}"
            "`model.hook_names()` lists them."
        )


class EmptyGlobError(HookNameError):
    """A pattern or a names filter selects no hook point.

    Attributes:
        name: The pattern.
        known: The hook names that exist.
    """

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(name, known)
        self.args = (
            (
                f"The pattern {name!r} matches none of the {len(self.known)} hook points in this model. {_near(name, self.known)}"
                "`*` stays within one level, `**` crosses levels; `model.hook_names()` lists the names."
            ),
        )


class PortError(MechfeatError, LookupError):
    """A hook point exists, but not the port that was asked for.

    Attributes:
        name: The hook name asked for.
        found: What is there instead.
        ports: Hook names that would work.
    """

    def __init__(self, name: str, found: str, ports: Sequence[str]) -> None:
        self.name, self.found, self.ports = name, found, tuple(ports)
        hint = f"Use {' or '.join(repr(p) for p in ports)}." if ports else "It holds no tensor to record or edit."
        super().__init__(f"{name!r} does not address one tensor: {found}. {hint}")


class HookNotReachedError(MechfeatError, RuntimeError):
    """A hook point was asked for by its literal name, and the forward pass never reached it.

    Attributes:
        names: The names that were not reached.
        reached: Hook names that were.
    """

    def __init__(self, names: Sequence[str], reached: Sequence[str]) -> None:
        self.names, self.reached = tuple(names), tuple(reached)
        many = "was" if len(self.names) == 1 else "were"
        super().__init__(
            f"{', '.join(map(repr, self.names))} {many} not reached by this forward pass. The module exists, but this input did not call"
            " it: it may be skipped, used through its weight alone, fire fewer times, or hold no tensor at this port. `model.describe(x)`"
            " shows what is reached and how often."
        )


class EditNotFiredError(MechfeatError, RuntimeError):
    """The block of an edit ended, and the edit was never applied.

    Attributes:
        edits: The edits, as text.
    """

    def __init__(self, edits: Sequence[str]) -> None:
        self.edits = tuple(edits)
        many = "edit was" if len(self.edits) == 1 else "edits were"
        super().__init__(
            f"{len(self.edits)} {many} never applied: {'; '.join(self.edits)}. A forward pass completed inside the block "
            "without calling the hook point, so the result is that of the unedited model. "
            "`model.describe(x)` shows what is reached and how often."
        )


class AmbiguousCallError(MechfeatError, LookupError):
    """A hook point fires more than once, and the name does not say which call is meant.

    Attributes:
        name: The name without a call index.
        calls: How often it fired (so far, where the forward pass was cut short).
    """

    def __init__(self, name: str, calls: int) -> None:
        self.name, self.calls = name, calls
        options = ", ".join(repr(f"{name}#{k}") for k in range(min(calls, 3))) + (", ..." if calls > 3 else "")
        super().__init__(f"{name!r} fires {calls} times in one forward pass. Say which call: {options}, or '{name}#*' for all.")


class StaleActivationError(MechfeatError, RuntimeError):
    """A recorded activation was overwritten in place before the run ended.

    Attributes:
        names: The hook names whose values are no longer those of the moment they passed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(
            f"{', '.join(map(repr, self.names))}: overwritten in place after being recorded, so the values are not those that "
            "passed the hook point. Record with clone=True, or leave clone unset: it copies what is known to be overwritten, "
            "and these names are known from now on."
        )


class SelectorError(MechfeatError, ValueError):
    """A selector names an axis that the activation lacks, or an index outside it."""


class GradientError(MechfeatError, RuntimeError):
    """A gradient was asked for that the run did not keep."""


class UnsupportedModelError(MechfeatError, NotImplementedError):
    """A kind of model that a method cannot serve, with the way around it."""


class UnsupportedLayerError(MechfeatError, NotImplementedError):
    """A layer or use of a parameter that a method cannot serve, with the way around it."""


class CircuitError(MechfeatError, ValueError):
    """Two hook points are not connected in the way a circuit method needs."""


class ModelOutputError(MechfeatError, TypeError):
    """A model returned something that is not the tensor a method needs."""


class NoParametersError(MechfeatError, ValueError):
    """A model has no trainable parameters, where at least one is needed."""


class SampleInteractionError(MechfeatError, ValueError):
    """The output for one sample depends on the other samples of the batch, so a per-sample kernel is not defined."""


class NondeterministicModelError(MechfeatError, ValueError):
    """The model draws random numbers while it runs, so two evaluations differ."""


class ProofError(MechfeatError, RuntimeError):
    """A part of a kernel disagrees with the independent gradient it was checked against.

    Attributes:
        parameters: Names of the parameters concerned.
        gaps: Relative disagreement of each, dimensionless.
    """

    def __init__(self, parameters: Sequence[str], gaps: Sequence[float], advice: str) -> None:
        self.parameters, self.gaps = tuple(parameters), tuple(gaps)
        rows = ", ".join(f"{p!r} (relative gap {g:.1e})" for p, g in zip(self.parameters, self.gaps))
        super().__init__(f"The completeness proof failed for {rows}. {advice}")


class MemoryCapError(MechfeatError, MemoryError):
    """A computation cannot be done within the memory it was given.

    Attributes:
        cap: Bytes that were allowed.
        smallest: Bytes that the smallest blocks are predicted to take, beside the model and its inputs.
    """

    def __init__(self, cap: int, smallest: int) -> None:
        self.cap, self.smallest = cap, smallest
        super().__init__(
            f"max_memory={cap} bytes is not enough: with one sample at a time the kernel is predicted to take {smallest} bytes beside the "
            f"model and its inputs. Allow max_memory={smallest}, give fewer samples, or ask for outputs='trace' or 'pseudo'."
        )


class StepSizeError(MechfeatError, ValueError):
    """A learning rate is too large for gradient descent to converge.

    Attributes:
        lr: The learning rate given.
        limit: Below which it converges: twice the number of samples (for a mean over samples) over the largest eigenvalue of the kernel.
    """

    def __init__(self, lr: float, limit: float) -> None:
        self.lr, self.limit = lr, limit
        super().__init__(
            f"lr={lr:g}, and gradient descent on squared loss with this kernel converges below {limit:.6g} (2 over the largest eigenvalue, "
            "times the number of samples for a mean over samples). Take a smaller learning rate, or gradient flow: time='flow'."
        )


class QuadratureError(MechfeatError, ValueError):
    """A function cannot be integrated to the accuracy asked for, or has a kink that was not declared."""


class SessionClosedError(MechfeatError, RuntimeError):
    """A session was called after its ``with`` block had ended."""

    def __init__(self) -> None:
        super().__init__(
            "This session is closed: its hooks were removed when the `with model.attach(...)` block ended. "
            "Call it inside the block, or use `model.record`."
        )


class FileFormatError(MechfeatError, ValueError):
    """A file is not what mechfeat wrote, or is damaged."""


class SchemaError(MechfeatError, ValueError):
    """A file of texts does not have the columns or labels that were said.

    Attributes:
        source: The file.
        line: Number of the line, from 1; None where the whole of it is meant.
    """

    def __init__(self, source: str, line: int | None, found: str, right: str) -> None:
        self.source, self.line = source, line
        place = source if line is None else f"{source}, line {line}"
        super().__init__(f"{place}: {found}. Expected {right}.")


class UnknownTokenError(MechfeatError, LookupError):
    """A vocabulary does not hold a token.

    Attributes:
        tokens: The tokens that it does not hold.
        known: The tokens that it holds.
    """

    def __init__(self, tokens: Sequence[str], known: Sequence[str]) -> None:
        self.tokens, self.known = tuple(tokens), tuple(known)
        named = ", ".join(map(repr, self.tokens[:5])) + (", ..." if len(self.tokens) > 5 else "")
        super().__init__(
            f"The vocabulary of {len(self.known)} tokens does not hold {named}. {_near(self.tokens[0], self.known)}"
            "Vocabulary(..., unknown='drop') leaves unknown tokens out, unknown='unk' gives them one id."
        )


class MissingPackageError(MechfeatError, ImportError):
    """Something needs a package that is optional and not installed.

    Attributes:
        package: Name of the package.
        extra: The extra of mechfeat that brings it.
    """

    def __init__(self, package: str, need: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{need} needs the package {package!r}, which is not installed. `pip install mechfeat[{extra}]` brings it.")


class NotCachedError(MechfeatError, LookupError):
    """A data set is not in the local cache, and nothing is downloaded.

    Attributes:
        name: Name of the data set.
        config: Its configuration, if one was asked for.
        split: Its split.
    """

    def __init__(self, name: str, config: str | None, split: str) -> None:
        self.name, self.config, self.split = name, config, split
        said = repr(name) if config is None else f"{name!r} in the configuration {config!r}"
        super().__init__(
            f"The split {split!r} of {said} was not found locally. Download it once with "
            f"datasets.load_dataset({name!r}), or give the folder of a local copy."
        )


class ResumeError(MechfeatError, ValueError):
    """A folder or file holds another run, so this run cannot go on there.

    Attributes:
        folder: The folder, or the file.
        differences: What differs: the value there, and that of this run.
    """

    def __init__(
        self,
        folder: object,
        differences: Mapping[str, tuple[object, object]],
        *,
        holds: str = "the shards of another run",
        place: str = "folder",
    ) -> None:
        self.folder, self.differences = str(folder), dict(differences)
        rows = "; ".join(f"{key}: {_short(there)} there, {_short(here)} here" for key, (there, here) in self.differences.items())
        super().__init__(f"{self.folder!r} holds {holds} ({rows}). Choose another {place}, or delete this one.")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def _near(name: str, known: Sequence[str]) -> str:
    near = closest(name, known)
    return f"Closest: {', '.join(near)}. " if near else ""
