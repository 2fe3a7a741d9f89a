"""Hook names: ``path[:port][#call]``, their patterns, and which names a request selects."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from mechfeat.errors import EmptyGlobError, HookNameError, OptionError

ATTENTION_PORTS = ("q", "k", "v", "scores", "pattern", "z", "result")
SIDES = ("in", "out", "*", *ATTENTION_PORTS)  # how a port can begin
NamesFilter = str | Sequence[str] | Callable[[str], bool] | None


class HookName(NamedTuple):
    """Address of a place where an activation passes.

    Attributes:
        path: Module path (empty for the root), or the name given to ``mf.point``.
        port: ``out`` or ``in``, with the place inside a tuple, mapping or dataclass after a dot: ``out.0``, ``in.mask``.
        call: Which call, from 0; None where it is not said.

    Example:
        >>> HookName.parse("blocks.0.attn:out.1#2")
        HookName(path='blocks.0.attn', port='out.1', call=2)
        >>> str(HookName("conv1")), str(HookName("")), str(HookName("relu", "in", 1))
        ('conv1', ':out', 'relu:in#1')
    """

    path: str
    port: str = "out"
    call: int | None = None

    @classmethod
    def parse(cls, text: str) -> "HookName":
        """Read a literal name.

        Args:
            text: The name.

        Returns:
            Its parts.

        Raises:
            OptionError: The text is not of the form ``path[:port][#call]``.
        """
        pattern = Pattern.parse(text)
        if pattern.is_glob or pattern.call == "*":
            raise OptionError("hook name", text, ("a literal name, without '*'",))
        return cls(pattern.path, pattern.port, None if pattern.call is None else int(pattern.call))

    def __str__(self) -> str:
        port = f":{self.port}" if self.port != "out" or not self.path else ""
        return f"{self.path}{port}" + ("" if self.call is None else f"#{self.call}")

    @property
    def side(self) -> str:
        """``in`` or ``out``."""
        return self.port.partition(".")[0]


@dataclass(frozen=True)
class Pattern:
    """What one requested string selects: a literal name, or a glob (``*`` within a level, ``**`` across levels).

    Attributes:
        text: The request as written.
        path: Path part.
        port: Port part, ``out`` by default.
        call: Call index as text, ``*`` for every call, None if not given.
        chosen: Whether a predicate or a role selected it; such a name is one of a set, as those of a glob are.
        members: Path and port of each hook point of a role, once it is resolved on a model.

    Example:
        >>> p = Pattern.parse("layer2.**.conv1")
        >>> p.matches_path("layer2.0.conv1"), p.matches_path("layer2.conv1"), p.matches_path("layer3.0.conv1")
        (True, True, False)
    """

    text: str
    path: str
    port: str = "out"
    call: str | None = None
    chosen: bool = False
    members: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read a request.

        Args:
            text: A name or a glob.

        Returns:
            Its parts.

        Raises:
            OptionError: The text is not of the form ``path[:port][#call]``.
        """
        match = re.fullmatch(r"([^:#]*)(?::((?:\w+|\*)(?:\.[^:#]+)?))?(?:#(\d+|\*))?", text)
        if match is None:
            raise OptionError("hook name", text, ("path", "path:in", "path:out.0", "path#1", "path:in.mask#*"))
        path, port, call = match.groups()
        return cls(text, path, port or "out", call)

    @cached_property
    def side(self) -> str:
        """``in``, ``out``, an attention port, or ``*`` for inputs and outputs."""
        return self.port.partition(".")[0]

    @cached_property
    def sides(self) -> tuple[str, ...]:
        """The sides that are selected; ``*`` stands for inputs and outputs, a role for those of its members."""
        if self.members:
            return tuple(
                dict.fromkeys(side for _, port in self.members for side in (("in", "out") if port == "*" else (port.partition(".")[0],)))
            )
        return ("in", "out") if self.side == "*" else (self.side,)

    @cached_property
    def is_glob(self) -> bool:
        """Whether it is one name among a set: path or port hold a ``*``, or a predicate selected it.

        A call ``*`` still names one hook point.
        """
        return self.chosen or "*" in self.path or "*" in self.port

    @property
    def role(self) -> str | None:
        """The role asked for, ``conv`` in ``@conv``; None for names and globs."""
        return self.path[1:] if self.path.startswith("@") else None

    def resolved(self, names: Iterable[str]) -> "Pattern":
        """The request for a role, as the set of hook points it stands for.

        Args:
            names: Their hook names.

        Returns:
            The request. Where it gives a port, that port of each.
        """
        known = [HookName.parse(n) for n in names]
        members = tuple((n.path, n.port if self.port == "out" else self.port) for n in known)
        return replace(self, port="*", chosen=True, members=members)

    def matches_path(self, path: str) -> bool:
        """Whether a path is selected.

        Args:
            path: A module path or point name.

        Returns:
            True for a match of the whole path.
        """
        if self.members:
            return any(path == member for member, _ in self.members)
        return _path_regex(self.path).fullmatch(f"{path}." if path else "") is not None

    def selects(self, name: HookName) -> bool:
        """Whether a fully known name, call included, is selected.

        Args:
            name: A name with its call index.

        Returns:
            True if path, port and call fit. A port without place (``out``) takes every place inside it.
        """
        if self.call not in (None, "*") and name.call is not None and int(self.call) != name.call:
            return False
        return self.matches_path(name.path) and self.selects_port(name.port, name.path)

    def selects_port(self, port: str, path: str | None = None) -> bool:
        """Whether a port, place included, is selected.

        Args:
            port: A port such as ``out.0``.
            path: The path it is at, which matters where the request is a role.

        Returns:
            True for the port itself and, where the pattern names a whole side, for every place inside it.
        """
        if self.members:
            ports = [p for member, p in self.members if path in (None, member)]
            # The first argument is the input itself where it is the only one.
            return any(_port_regex(p).fullmatch(port) is not None or (p, port) == ("in.0", "in") for p in ports)
        return _port_regex(self.port).fullmatch(port) is not None


@lru_cache(maxsize=4096)
def _path_regex(pattern: str) -> re.Pattern[str]:
    # Over the path with a dot after each level, so that "**" may stand for no level at all and the root is the empty text.
    levels = pattern.split(".") if pattern else []
    return re.compile("".join(r"(?:[^.]+\.)*" if level == "**" else re.escape(level).replace(r"\*", "[^.]*") + r"\." for level in levels))


@lru_cache(maxsize=4096)
def _port_regex(port: str) -> re.Pattern[str]:
    side, _, place = port.partition(".")
    body = re.escape(side).replace(r"\*", "[^.]*")
    return re.compile(body + (r"(?:\..+)?" if not place else r"\." + re.escape(place).replace(r"\*\*", ".*").replace(r"\*", "[^.]*")))


def patterns(request: NamesFilter, names: Sequence[str]) -> list[Pattern]:
    """The patterns of a request, in the order given.

    Args:
        request: A name or glob, several, a predicate over hook names, or None for every module output and point.
        names: Hook names that a predicate is asked about.

    Returns:
        At least one pattern.

    Raises:
        EmptyGlobError: The request is empty, or the predicate accepts nothing.
    """
    if request is None:
        return [Pattern.parse("**")]
    if isinstance(request, str):
        return [Pattern.parse(request)]
    texts: Iterable[str] = [n for n in names if request(n)] if callable(request) else request
    found = [replace(Pattern.parse(t), chosen=callable(request)) for t in dict.fromkeys(texts)]
    if not found:
        raise EmptyGlobError("names_filter" if callable(request) else "[]", names)
    return found


def split_unknown(wanted: Sequence[Pattern], paths: Sequence[str]) -> tuple[list[tuple[Pattern, list[str]]], list[Pattern]]:
    """Match requests against the module paths of a model.

    Args:
        wanted: The requests.
        paths: Module paths.

    Returns:
        Each request with the paths it matches, and the requests that match none (they may still name an ``mf.point``).
    """
    known = set(paths)
    found: list[tuple[Pattern, list[str]]] = []
    unknown: list[Pattern] = []
    for pattern in wanted:
        if pattern.members:  # its hook points exist, though those named by mf.point are no module paths
            found.append((pattern, [p for p in paths if pattern.matches_path(p)]))
            continue
        if pattern.side not in SIDES:
            hits = []
        elif "*" in pattern.path:
            hits = [p for p in paths if pattern.matches_path(p)]
        else:
            hits = [pattern.path] * (pattern.path in known)
        if hits:
            found.append((pattern, hits))
        else:
            unknown.append(pattern)
    return found, unknown


def unknown_name(pattern: Pattern, known: Sequence[str]) -> HookNameError:
    """The error for a request that matches no hook point.

    Args:
        pattern: The request.
        known: Hook names that exist.

    Returns:
        The exception, to be raised by the caller.
    """
    return EmptyGlobError(pattern.text, known) if pattern.is_glob else HookNameError(pattern.text, known)


def unknown_role(pattern: Pattern, roles: Iterable[str]) -> HookNameError:
    """The error for a role that a model does not have.

    Args:
        pattern: The request.
        roles: Roles it has.

    Returns:
        The exception, to be raised by the caller.
    """
    error = HookNameError(pattern.path, [f"@{role}" for role in roles])
    message = str(error).replace("No hook point matches", "No role is called").replace("`model.hook_names()`", "`model.roles()`")
    error.args = (message,)
    return error


def numbered(names: Iterable[HookName], fired: Mapping[tuple[str, str], int]) -> Iterator[tuple[HookName, HookName]]:
    """Drop the call index of names that fired once.

    Args:
        names: Names with call index.
        fired: How often each path and port fired, recorded or not.

    Yields:
        Each name as given, and as it is shown.
    """
    for name in names:
        yield name, name._replace(call=None) if fired[name.path, name.port] == 1 else name
