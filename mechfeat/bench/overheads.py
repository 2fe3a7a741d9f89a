"""What hooks cost: a forward pass with recording or edits, as a ratio to the plain pass, on models of several families."""

import datetime
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mechfeat.bench.harness import commit
from mechfeat.errors import ProofError
from mechfeat.hooks import HookedModel, Replace
from mechfeat.models import CifarResNet, mlp

Case = Callable[[], Any]
_ATTACHED = "record every point, hooks kept in place"


@dataclass(frozen=True)
class OverheadRow:
    """One way to run a model, against the plain forward pass.

    Attributes:
        model: Name of the model.
        case: What was done besides the forward pass.
        ratio: Median seconds over those of the plain pass, runs interleaved; the best of the repeats.
        plain: Median seconds of the plain pass in that repeat.
        runs: Timed runs of each case in a repeat.
        repeats: How often the comparison was made.
        dtype: Dtype as text.
        device: Name of the device.
        threads: Threads torch used.
        torch: Version of torch.
        commit: Commit of the code.
        date: UTC date and time.
    """

    model: str
    case: str
    ratio: float
    plain: float
    runs: int
    repeats: int
    dtype: str
    device: str
    threads: int
    torch: str
    commit: str
    date: str


def models() -> dict[str, tuple[nn.Module, Tensor, str, str]]:
    """The models: module, input, one hook point, and one a quarter of the way through.

    Returns:
        By name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(128, 4, 512, batch_first=True), 4, enable_nested_tensor=False)
        return {
            "resnet-20 n32": (
                CifarResNet(20).float().eval(),
                torch.randn(32, 3, 32, 32, dtype=torch.float32),
                "layer2.1.conv1",
                "layer1.1.conv2",
            ),
            "encoder d128 4 layers n12 t64": (
                encoder.float().train(False),
                torch.randn(12, 64, 128, dtype=torch.float32),
                "layers.1.linear1",
                "layers.0",
            ),
            "toy mlp 20 x 16 n4": (mlp([16] * 21).float().eval(), torch.randn(4, 16, dtype=torch.float32), "10", "8"),
        }


def overhead(name: str, *, runs: int = 30, repeats: int = 3) -> list[OverheadRow]:
    """Verify that each case leaves the output bit-equal, then time it against the plain pass.

    Args:
        name: A model.
        runs: Timed runs of each case in a repeat.
        repeats: Comparisons; the best one counts, since noise only adds.

    Returns:
        One row a case.

    Raises:
        ProofError: A case changes the output.
    """
    module, x, one, quarter = models()[name]
    hooked = HookedModel(module)

    def raw() -> Any:
        kept: dict[str, Any] = {}
        with ExitStack() as handles:
            for path, m in module.named_modules():
                handles.callback(m.register_forward_hook(lambda m, i, o, path=path: kept.__setitem__(path, o)).remove)
            return module(x)

    def edited() -> Any:
        with hooked.hooks(Replace(one, lambda a: a)):
            return module(x)

    cases: dict[str, Case] = {
        "plain": lambda: module(x),
        "raw torch hooks on all modules": raw,
        "record every point": lambda: hooked.run_with_cache(x)[0],
        "record one point": lambda: hooked.run_with_cache(x, one)[0],
        "identity edit at one point": edited,
        "record to a quarter and stop": lambda: hooked.record(x, f"{quarter}#0"),
    }
    with torch.enable_grad():
        want = module(x)
        for case, run in cases.items():
            for _ in range(2):
                have = run()
            if isinstance(have, Tensor) and not torch.equal(have, want):
                raise ProofError([case], [float((have - want).abs().max())], f"It changes the output of {name!r} and is not timed.")
        best: dict[str, tuple[float, float]] = {}
        for _ in range(repeats):
            seconds: dict[str, list[float]] = {case: [] for case in cases}
            for _ in range(runs):
                for case, run in cases.items():
                    start = time.process_time()
                    run()
                    seconds[case].append(time.process_time() - start)
            plain = statistics.median(seconds["plain"])
            seconds[_ATTACHED] = _attached(hooked, x, runs)
            for case in seconds:
                pair = (statistics.median(seconds[case]) / plain, plain)
                best[case] = min(best.get(case, pair), pair)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = ("float32", f"{platform.machine()} CPU", torch.get_num_threads(), torch.__version__, commit(), now)
    return [OverheadRow(name, case, ratio, plain, runs, repeats, *facts) for case, (ratio, plain) in best.items() if case != "plain"]


def _attached(hooked: HookedModel, x: Tensor, runs: int) -> list[float]:
    """Seconds of runs between which the hooks stay in place; while they do, a plain pass cannot be timed."""
    found = []
    with hooked.attach() as session:
        for i in range(runs + 2):
            start = time.process_time()
            session(x)
            if i >= 2:
                found.append(time.process_time() - start)
    return found


def idle_point() -> float:
    """Seconds of a call of ``mf.point`` outside every run: the best of several medians.

    Returns:
        Seconds a call.
    """
    from mechfeat.points import point

    x = torch.zeros(1)
    medians = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(100_000):
            point(x, "name")
        medians.append((time.perf_counter() - start) / 100_000)
    return min(medians)


def table(rows: list[OverheadRow]) -> str:
    """Rows as text.

    Args:
        rows: Rows of one model.

    Returns:
        A table.
    """
    head = (
        f"{rows[0].model}, plain pass {rows[0].plain * 1e3:.2f} ms, {rows[0].threads} threads, best of {rows[0].repeats} x {rows[0].runs}"
        " runs"
    )
    return "\n".join([head, *(f"  {r.case:32s} {r.ratio:5.2f}x" for r in rows)])
