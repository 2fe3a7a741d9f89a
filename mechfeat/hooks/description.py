"""What hook points a model has: the table that ``HookedModel.describe`` returns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from mechfeat.hooks.names import HookName, Pattern
from mechfeat.hooks.scope import ModelScope
from mechfeat.hooks.site import Site


@dataclass(frozen=True)
class PointRow:
    """One line of the table.

    Attributes:
        name: Hook name; with the place inside a tuple or dataclass where the module returns one.
        kind: Class of the module, ``point`` for ``mf.point``.
        axes: Axis names; empty where no input was given.
        shape: Shape of the last call; empty where no input was given or the point was not reached.
        dtype: Dtype as text; empty likewise.
        calls: How often it fired; None where no input was given.
        role: Its roles, as in ``@conv``, with a space between; with ``:in`` those of its input.
    """

    name: str
    kind: str
    axes: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = ""
    calls: int | None = None
    role: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the forward pass called it; None where no input was given."""
        return None if self.calls is None else self.calls > 0


class Description(Sequence[PointRow]):
    """The hook points of a model, in order of execution where an input was given, else of definition. Prints as a table."""

    def __init__(self, rows: Sequence[PointRow]) -> None:
        self.rows = tuple(rows)

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        return self.rows[i]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PointRow]:
        return iter(self.rows)

    def __str__(self) -> str:
        cells = [("hook name", "role", "kind", "axes", "calls")]
        for r in self.rows:
            axes = " ".join(f"{a}={s}" for a, s in zip(r.axes, r.shape)) + (f" {r.dtype}" if r.dtype else "")
            cells.append((r.name, r.role, r.kind, axes, "" if r.calls is None else str(r.calls) if r.calls else "not reached"))
        widths = [max(len(row[i]) for row in cells) for i in range(5)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in cells)

    __repr__ = __str__


class Surveyor(ModelScope):
    """Takes note of shapes and calls of every output and point, and keeps no tensor.

    Args:
        site: The model.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site, [Pattern.parse("**")])
        self._rows: dict[tuple[str, str], PointRow] = {}

    def visit(self, x: Tensor, name: HookName, patterns: Sequence[Pattern]) -> Tensor:
        """Take note of shape and call."""
        module = self.site.modules.get(name.path)
        kind = "point" if module is None else type(module).__name__
        dtype = str(x.dtype).removeprefix("torch.")
        self._rows[name.path, name.port] = PointRow(
            str(HookName(name.path, name.port)), kind, self.site.axes(name, x.ndim), tuple(x.shape), dtype, (name.call or 0) + 1
        )
        return x

    def description(self) -> Description:
        """The table.

        Returns:
            Hook points in order of execution, then those not reached or without a tensor.
        """
        shown = {path for path, _ in self._rows}
        others = [(p, m) for p, m in self.site.modules.items() if p not in shown]  # not reached, or without a tensor in their output
        rows = [PointRow(str(HookName(p)), type(m).__name__, calls=self.calls.get((p, "out"), 0)) for p, m in others]
        return _with_roles([*self._rows.values(), *rows], self.site.roles)


def static_description(site: Site, known_points: Sequence[str]) -> Description:
    """The table without a forward pass.

    Args:
        site: The model.
        known_points: Names given to ``mf.point`` in earlier runs.

    Returns:
        Names and kinds alone.
    """
    modules = [PointRow(str(HookName(p)), type(m).__name__) for p, m in site.modules.items()]
    return _with_roles([*modules, *(PointRow(p, "point") for p in known_points)], site.roles)


def _with_roles(rows: Sequence[PointRow], roles: Mapping[str, Sequence[str]]) -> Description:
    of: dict[str, list[str]] = {}
    for role, names in roles.items():
        for text in names:
            name = HookName.parse(text)
            # Rows are outputs. Without an input their places are not known, so "attn:out.0" is shown at "attn".
            if name.side == "in":
                of.setdefault(name.path, []).append(f"{role}:in")
            else:
                of.setdefault(text, []).append(role)
    listed = {row.name for row in rows}
    for text in list(of):
        if text not in listed and (path := HookName.parse(text).path) in listed:
            of.setdefault(path, []).extend(of[text])
    first: dict[str, PointRow] = {}
    for row in rows:
        first.setdefault(HookName.parse(row.name).path, row)
    for path in [p for p in of if p not in listed and p in first]:  # an input's role, at the first row of a module with several outputs
        of.setdefault(first[path].name, []).extend(of[path])
    return Description([replace(row, role=" ".join(dict.fromkeys(of.get(row.name, ())))) for row in rows])
