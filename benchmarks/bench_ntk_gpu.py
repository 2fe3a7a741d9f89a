"""The empirical NTK on a CUDA device: correctness, then times against torch.func, the torch path and the floor.

Writes rows for results/ntk_gpu.jsonl. Without a CUDA device it says so and writes nothing.
"""

import argparse
import datetime
import gc
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from mechfeat.bench.harness import LARGE, TOLERANCE, commit, oracle_kernel, write_rows
from mechfeat.bench.methods import jacobian_contraction
from mechfeat.bench.problems import PROBLEMS, Problem
from mechfeat.errors import ProofError
from mechfeat.kernels import contract, cost, dispatch, tiles
from mechfeat.kernels.precision import tf32
from mechfeat.kernels.tiles import Single
from mechfeat.ntk import empirical_ntk, plan
from mechfeat.ntk.precision import exact

FIVE = ("mlp-784-1024-1024-10 n256", "toy-16-128-128-1 n4096", "vgg-like n64", "resnet-18 n12", "transformer-256 n32")
PAIRS = (  # n, o, t, c, k of one batch with itself
    (7, 3, 5, 19, 33),
    (33, 17, 1, 5, 4),
    (64, 10, 64, 128, 1152),
    (64, 1, 32, 256, 256),
    (128, 10, 16, 512, 4608),
    (64, 10, 49, 256, 512),
)
SINGLES = (  # n, o, layers' (c, k)
    (37, 3, ((19, 33), (0, 20))),
    (4096, 1, ((128, 17), (128, 129), (0, 129))),
    (16384, 1, ((128, 129), (128, 129))),
    (1024, 10, ((64, 65), (64, 65), (0, 65))),
)


@dataclass(frozen=True)
class Row:
    """A method on a problem. Times are seconds, of CUDA events; ``floor`` is the larger of operations over rate and bytes over bandwidth.

    ``expected`` says for a Triton kernel whether the cost rule would take it. A method that ran out of memory has no times.
    """

    problem: str
    method: str
    device: str
    dtype: str
    tf32: bool
    median: float | None
    iqr: float | None
    runs: int
    floor: float
    peak_bytes: int | None
    error: float | None
    expected: bool | None
    torch: str
    driver: str
    commit: str
    date: str


def seconds(run: Callable[[], object]) -> float:
    """Time of one run on the device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def rows(
    problem: str,
    methods: dict[str, tuple[Callable[[], torch.Tensor], bool | None]],
    error_of: Callable[[torch.Tensor], float],
    floor: float,
    tolerance: float,
    repeats: int,
) -> list[Row]:
    """Check every method, then time those that fit into memory in turn."""
    errors, peaks = {}, {}
    for name, (run, _) in methods.items():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        try:
            errors[name] = error_of(run())  # also the warm-up: kernels are compiled and proofs remembered
            torch.cuda.reset_peak_memory_stats()
            run()
        except torch.cuda.OutOfMemoryError:
            errors.pop(name, None)
            continue
        peaks[name] = torch.cuda.max_memory_allocated() - before
        if not errors[name] <= tolerance and not tf32():
            raise ProofError([name], [errors[name]], f"It is not timed on {problem!r}: a wrong answer has no speed.")
    times: dict[str, list[float]] = {name: [] for name in errors}
    for _ in range(repeats):
        for name in times:
            times[name].append(seconds(methods[name][0]))
    made = []
    for name, (_, expected) in methods.items():
        quartiles = statistics.quantiles(times[name], n=4) if name in times else None
        made.append(
            Row(
                problem=problem,
                method=name,
                device=torch.cuda.get_device_name(),
                dtype="float32",
                tf32=tf32(),
                median=None if quartiles is None else statistics.median(times[name]),
                iqr=None if quartiles is None else quartiles[2] - quartiles[0],
                runs=0 if quartiles is None else repeats,
                floor=floor,
                peak_bytes=peaks.get(name),
                error=errors.get(name),
                expected=expected,
                torch=torch.__version__,
                driver=f"CUDA {torch.version.cuda}",
                commit=commit(),
                date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
        )
        r = made[-1]
        taken = "out of memory" if r.median is None else f"{r.median * 1e3:9.3f} ms  {r.median / floor:7.1f} x floor  error {r.error:.0e}"
        print(f"{problem:45s} {name:32s} {taken}" + ("" if expected is None else f"  expected to pay: {expected}"), flush=True)
    return made


def relative(have: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return float((have.double() - want).abs().max() / want.abs().max())


def pair_rows(device: torch.device, speed: cost.Speed, repeats: int) -> list[Row]:
    """The kernels of pairs of samples against their torch references."""
    from mechfeat.kernels import triton

    made = []
    for name, torch_work, fused_work in (("gram", cost.gram_torch, cost.gram_fused), ("mixed", cost.mixed_torch, cost.mixed_fused)):
        for n, o, t, c, k in PAIRS:
            for outputs in ("full", "trace"):
                torch.manual_seed(0)
                left, right = torch.randn(n, o, t, c, device=device), torch.randn(n, t, k, device=device)
                few = slice(0, 8)
                wide = left[few].double(), right[few].double()
                want = contract.block(*wide, *wide, outputs)
                x = cost.Sizes(n, n, o, t, t, c, k, outputs, same=True)
                work = torch_work(x)
                floor = max(work.flops / speed.rate, 4 * (left.numel() + right.numel()) / speed.bandwidth)

                def run(module, left=left, right=right, outputs=outputs, name=name):
                    return lambda: getattr(module, name)(left, right, left, right, outputs)

                methods = {
                    "torch": (run(contract), None),
                    "triton": (run(triton), cost.pays(work, fused_work(x), speed)),
                }

                def error_of(kernel, want=want, outputs=outputs):
                    return relative(kernel[:8, :, :8] if outputs == "full" else kernel[:8, :8], want)

                made += rows(f"{name} {outputs} n{n} o{o} t{t} c{c} k{k}", methods, error_of, floor, dispatch.TOLERANCE, repeats)
    return made


def single_rows(device: torch.device, speed: cost.Speed, repeats: int) -> list[Row]:
    """The kernel of single positions against its torch reference."""
    from mechfeat.kernels import triton

    made = []
    for n, o, sizes in SINGLES:
        torch.manual_seed(0)
        layers = []
        for c, k in sizes:
            left, right = torch.randn(n, o, c, device=device) if c else None, torch.randn(n, k, device=device)
            layers.append(Single(left, right, left, right))
        want = torch.zeros(8, o, 8, o, device=device, dtype=torch.float64)
        few = [tuple(None if x is None else x[:8].double() for x in (y.left1, y.right1)) for y in layers]
        tiles.add_singles(want, [Single(left, right, left, right) for left, right in few], fresh=True, same=True)
        theta = torch.empty(n, o, n, o, device=device)
        work = cost.singles_torch(n, n, o, sizes, True)
        floor = max(work.flops / speed.rate, 4 * theta.numel() / speed.bandwidth)

        def run(module, theta=theta, layers=layers):
            def call():
                module.add_singles(theta, layers, fresh=True, same=True)
                return theta

            return call

        pays = cost.pays(work, cost.singles_fused(n, n, o, sizes, True), speed)
        methods = {"torch": (run(tiles), None), "triton": (run(triton), pays)}
        problem = f"single n{n} o{o} " + " ".join(f"c{c}k{k}" for c, k in sizes)
        made += rows(problem, methods, lambda kernel, want=want: relative(kernel[:8, :, :8], want), floor, dispatch.TOLERANCE, repeats)
    return made


def problem_rows(problem: Problem, device: torch.device, speed: cost.Speed, repeats: int) -> list[Row]:
    """A whole kernel, with and without Triton, against Jacobian contraction."""
    module, x = problem.build(device=str(device))
    wide, x64 = problem.build(torch.float64, str(device))
    large = len(x) > 64 or sum(p.numel() for p in module.parameters()) > LARGE
    few = sorted({*range(min(4, len(x))), *range(max(0, len(x) - 4), len(x))}) if large else list(range(len(x)))
    want = oracle_kernel(wide, x64[few])
    del wide, x64

    def ours(triton: bool) -> Callable[[], torch.Tensor]:
        def run():
            os.environ["MECHFEAT_NO_TRITON"] = "0" if triton else "1"
            return empirical_ntk(module, x).kernel

        return run

    def jacobian() -> torch.Tensor:
        with exact(module):  # both in the same precision: torch's default rounds convolutions to TF32
            return jacobian_contraction(module, x)

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = module(x)
    made = plan(module, x)
    # Forward once, back through the activations once an output, and the contractions; the kernel written once.
    flops = counter.get_total_flops() * (1 + y.shape[1]) + 2 * made.macs
    floor = max(flops / speed.rate, made.kernel_bytes / speed.bandwidth)
    methods = {
        "mechfeat": (ours(True), None),
        "mechfeat without triton": (ours(False), None),
        "torch.func jacobian contraction": (jacobian, None),
    }
    return rows(problem.name, methods, lambda kernel: relative(kernel[few][:, :, few], want), floor, TOLERANCE[torch.float32], repeats)


def main(arguments: list[str] | None = None) -> int:
    """Run everything and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--problems", nargs="*", default=list(FIVE), choices=list(PROBLEMS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ntk_gpu.jsonl")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was measured and nothing written.")
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    speed = dispatch.speed(device, tf32())
    print(f"{torch.cuda.get_device_name()}: {speed.bandwidth / 1e12:.2f} TB/s, {speed.rate / 1e12:.1f} TFLOP/s in float32", flush=True)
    try:
        import triton
    except ImportError:
        print("triton is not installed: the kernels are left out.")
    else:
        print(f"triton {triton.__version__}")
        write_rows(single_rows(device, speed, options.repeats), options.out)
        write_rows(pair_rows(device, speed, options.repeats), options.out)
    for name in options.problems:
        write_rows(problem_rows(PROBLEMS[name], device, speed, options.repeats), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
