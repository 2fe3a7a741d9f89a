"""``mechfeat bench``."""

from collections.abc import Sequence

import torch

from mechfeat.bench import METHODS, PROBLEMS, compare, harness, overhead, overheads, write_rows
from mechfeat.errors import OptionError

_DEFAULT = ("mlp-784-1024-1024-10 n32", "digits-cnn n64")
_SMOKE = ("mlp-16-32-4 n8",)


def bench(what: str, names: Sequence[str] | None, *, repeats: int, threads: int | None, out: str | None, smoke: bool) -> None:
    """Verify and time, and print a table a problem.

    Args:
        what: ``ntk`` for the kernel against its peers, ``hooks`` for runs with hooks against plain ones.
        names: Problems; the default ones if None.
        repeats: Timed runs of each method.
        threads: Threads for torch; unchanged if None.
        out: File of JSON lines to append to, or None.
        smoke: One small problem and two runs.

    Raises:
        OptionError: A problem is not known, or there is nothing to repeat.
    """
    known = tuple(PROBLEMS) if what == "ntk" else tuple(overheads.models())
    default = _DEFAULT if what == "ntk" else known
    small = _SMOKE if what == "ntk" else known[-1:]
    chosen = tuple(names) if names else small if smoke else default
    for name in chosen:
        if name not in known:
            raise OptionError("problem", name, known)
    if repeats < 1:
        raise OptionError("repeats", repeats, ("at least 1",))
    if threads is not None:
        torch.set_num_threads(threads)
    for name in chosen:
        if what == "ntk":
            kernels = compare(PROBLEMS[name], list(METHODS.values()), repeats=2 if smoke else repeats, progress=True)
            print(harness.table(kernels), end="\n\n")
        else:
            runs = overhead(name, runs=2 if smoke else 30, repeats=1 if smoke else repeats)
            print(overheads.table(runs), end="\n\n")
        if out is not None:
            write_rows(kernels if what == "ntk" else runs, out)
    if what == "hooks":
        print(f"an idle mf.point: {overheads.idle_point() * 1e6:.3f} µs")
