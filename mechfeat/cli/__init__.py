"""The command line: ``mechfeat tour``, ``mechfeat info``, ``mechfeat bench``."""

import argparse
import sys
from collections.abc import Sequence

from mechfeat.errors import MechfeatError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        Exit status: 0, or 1 after an error, which is printed.
    """
    import mechfeat

    parser = argparse.ArgumentParser(prog="mechfeat", description=mechfeat.__doc__.splitlines()[0] if mechfeat.__doc__ else "")
    parser.add_argument("--version", action="version", version=mechfeat.__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    tour = commands.add_parser("tour", help="the main job on real digits: train, hook, probe, ablate, read, measure, NTK, report")
    tour.add_argument("--out", default="mechfeat-tour.html", help="where the report is written (default: %(default)s)")
    tour.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")

    commands.add_parser("info", help="versions, devices, and which optional parts work")

    bench = commands.add_parser("bench", help="time a computation against its peers")
    bench.add_argument("what", choices=["ntk", "hooks"], help="what to time")
    bench.add_argument("--problem", action="append", help="a problem by name; may be repeated (default: all but the smallest)")
    bench.add_argument("--repeats", type=int, default=7, help="timed runs of each method (default: %(default)s)")
    bench.add_argument("--threads", type=int, default=None, help="threads for torch (default: as torch decides)")
    bench.add_argument("--out", default=None, help="append the rows to this file of JSON lines")
    bench.add_argument("--smoke", action="store_true", help="one small problem, a few runs: does it work at all?")

    options = parser.parse_args(argv)
    try:
        if options.command == "tour":
            from mechfeat.cli.tour import tour as run_tour

            run_tour(options.out, seed=options.seed)
        elif options.command == "info":
            from mechfeat.cli.info import info

            print(info())
        else:
            from mechfeat.cli.bench import bench as run_bench

            run_bench(options.what, options.problem, repeats=options.repeats, threads=options.threads, out=options.out, smoke=options.smoke)
    except MechfeatError as error:
        print(f"mechfeat: {error}", file=sys.stderr)
        return 1
    return 0
