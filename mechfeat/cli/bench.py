"""``mechfeat bench``."""

from collections.abc import Sequence

import torch

from mechfeat.bench import METHODS, PROBLEMS, compare, write_rows
from mechfeat.bench.harness import table
from mechfeat.errors import OptionError

_DEFAULT = ("mlp-784-1024-1024-10 n32", "digits-cnn n64")
_SMOKE = ("mlp-16-32-4 n8",)


def bench(names: Sequence[str] | None, *, repeats: int, threads: int | None, out: str | None, smoke: bool) -> None:
    """Verify and time the NTK methods, and print a table a problem.

    Args:
        names: Problems; the default ones if None.
        repeats: Timed runs of each method.
        threads: Threads for torch; unchanged if None.
        out: File of JSON lines to append to, or None.
        smoke: One small problem and two runs.

    Raises:
        OptionError: A problem is not known, or there is nothing to repeat.
    """
    chosen = tuple(names) if names else _SMOKE if smoke else _DEFAULT
    for name in chosen:
        if name not in PROBLEMS:
            raise OptionError("problem", name, tuple(PROBLEMS))
    if repeats < 1:
        raise OptionError("repeats", repeats, ("at least 1",))
    if threads is not None:
        torch.set_num_threads(threads)
    for name in chosen:
        rows = compare(PROBLEMS[name], list(METHODS.values()), repeats=2 if smoke else repeats, progress=True)
        print(table(rows), end="\n\n")
        if out is not None:
            write_rows(rows, out)
