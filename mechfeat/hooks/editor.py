"""Editing: the scope that puts other values in place."""

from collections.abc import Sequence

from torch import Tensor

from mechfeat.errors import AmbiguousCallError, EditNotFiredError
from mechfeat.hooks.edits import Edit
from mechfeat.hooks.names import HookName, Pattern, unknown_name
from mechfeat.hooks.scope import ModelScope
from mechfeat.hooks.site import Site


class Editor(ModelScope):
    """Applies edits, in the order given, to every forward pass while it is open.

    Args:
        site: The model.
        edits: What to apply.
        known_points: Names given to ``mf.point`` in earlier runs.
    """

    def __init__(self, site: Site, edits: Sequence[Edit], known_points: Sequence[str] = ()) -> None:
        self._edits = [(edit, site.canonical(Pattern.parse(edit.hook))) for edit in edits]
        super().__init__(site, [pattern for _, pattern in self._edits], known_points)
        self._fired = [0] * len(edits)
        self.passes = 0

    def visit(self, x: Tensor, name: HookName, patterns: Sequence[Pattern]) -> Tensor:
        """Apply the edits of this hook point, in order."""
        axes = self.site.axes(name, x.ndim)
        for i, (edit, pattern) in enumerate(self._edits):
            if pattern not in patterns or not pattern.selects(name):
                continue
            if name.call and self.inside and not pattern.is_glob and pattern.call is None:
                raise AmbiguousCallError(str(HookName(name.path, name.port)), name.call + 1)
            shown = name if pattern.call is not None else name._replace(call=None)
            x = edit.at(str(shown)).apply(x, axes)
            self._fired[i] += 1
        return x

    def completed(self) -> None:
        """Count the pass; by now every point it has is known."""
        self.passes += 1
        unmatched = self.unmatched()
        if unmatched:
            raise unknown_name(unmatched[0], self.known())

    def check_fired(self) -> None:
        """Called when the block ends without exception.

        Raises:
            EditNotFiredError: A forward pass completed, and an edit was never applied.
        """
        idle = [str(edit) for (edit, _), n in zip(self._edits, self._fired) if not n]
        if self.passes and idle:
            raise EditNotFiredError(idle)
