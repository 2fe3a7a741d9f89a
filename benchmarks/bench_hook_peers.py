"""Recording with raw torch hooks, mechfeat, nnsight and the bridge of TransformerLens, on one model of GPT-2's shape.

Run it in an environment of its own, which ``benchmarks/peers/README.md`` sets up: nnsight is no dependency of the project. Every method
must give what plain hooks give before anything is timed; the runs are interleaved, one thread, process time. Appends to
``results/hook_peers.jsonl``.
"""

import argparse
import datetime
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from mechfeat.bench.harness import commit, write_rows
from mechfeat.hooks import HookedModel

RESULTS = Path(__file__).parent / "results" / "hook_peers.jsonl"
BLOCK = 2


@dataclass(frozen=True)
class PeerRow:
    """One way to record, on one input.

    ``median`` and ``iqr`` are seconds; ``over_plain`` and ``over_raw`` are ratios of medians to the plain pass and to raw torch hooks for
    the same points; ``error`` is the largest difference of the compared activation from that of raw hooks.
    """

    model: str
    case: str
    method: str
    median: float
    iqr: float
    over_plain: float
    over_raw: float
    error: float
    runs: int
    dtype: str
    device: str
    threads: int
    versions: dict[str, str]
    commit: str
    date: str


def gpt2() -> nn.Module:
    """Four blocks of width 128, eight heads, 1000 tokens, random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=1000, n_positions=64, n_embd=128, n_layer=4, n_head=8, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def methods(net: nn.Module, x: Tensor, folder: str) -> dict[tuple[str, str], Callable[[], Tensor]]:
    """Case and method → a run that returns what it recorded at the output of one block."""
    import nnsight
    from transformer_lens.model_bridge import TransformerBridge

    path = f"transformer.h.{BLOCK}"
    modules = dict(net.named_modules())
    hooked = HookedModel(net)
    bridge = TransformerBridge.boot_transformers(folder).eval()
    seen = nnsight.NNsight(net)

    def raw(chosen: dict[str, nn.Module]) -> Tensor:
        kept: dict[str, object] = {}
        handles = [m.register_forward_hook(lambda m, i, o, p=p: kept.__setitem__(p, o)) for p, m in chosen.items()]
        try:
            net(x)
        finally:
            for handle in handles:
                handle.remove()
        return _tensor(kept[path])

    def ours(names: str | None, name: str) -> Tensor:
        return hooked.run_with_cache(x, names)[1][name]

    def theirs_one() -> Tensor:
        with seen.trace(x):
            kept = seen.transformer.h[BLOCK].output.save()
        return _tensor(kept)

    def theirs_all() -> Tensor:
        with seen.trace(x) as tracer:
            cache = tracer.cache().save()
        return _tensor(cache[f"model.{path}"].output)

    # transformers gives a block's output as a tensor or as a tuple, depending on its version
    place = next(n for n in hooked.record(x, path) if n.startswith(path))
    point = f"blocks.{BLOCK}.hook_out"
    return {
        ("nothing", "plain"): lambda: net(x).logits,
        ("every point", "raw torch hooks"): lambda: raw(modules),
        ("every point", "mechfeat"): lambda: ours(None, place),
        ("every point", "nnsight"): theirs_all,
        ("every point", "TransformerLens bridge"): lambda: bridge.run_with_cache(x)[1][point],
        ("one point", "raw torch hooks"): lambda: raw({path: modules[path]}),
        ("one point", "mechfeat"): lambda: ours(place, place),
        ("one point", "nnsight"): theirs_one,
        ("one point", "TransformerLens bridge"): lambda: bridge.run_with_cache(x, names_filter=point)[1][point],
    }


def _tensor(value: object) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]  # type: ignore[index]


def measure(name: str, x: Tensor, net: nn.Module, folder: str, runs: int) -> list[PeerRow]:
    """Verify every method, then time all of them in turn."""
    every = methods(net, x, folder)
    expected = every["one point", "raw torch hooks"]()
    errors = {key: float((run() - expected).abs().max()) for key, run in every.items() if key[0] != "nothing"}
    for (case, method), error in errors.items():
        limit = 1e-5 if "bridge" in method else 0.0  # the bridge computes attention in its own way
        if error > limit:
            raise SystemExit(f"{method}, {case}: differs from raw hooks by {error:g}, and is not timed")
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in every}
    for run in every.values():
        run()
    for _ in range(runs):
        for key, run in every.items():
            start = time.process_time()
            run()
            seconds[key].append(time.process_time() - start)
    median = {key: statistics.median(t) for key, t in seconds.items()}
    tools = {tool: version(tool) for tool in ("torch", "transformers", "transformer-lens", "nnsight")}
    facts = (runs, "float32", f"{platform.machine()} CPU", torch.get_num_threads(), tools, commit())
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = []
    for (case, method), t in seconds.items():
        if case == "nothing":
            continue
        low, _, high = statistics.quantiles(t, n=4)
        ratios = (median[case, method] / median["nothing", "plain"], median[case, method] / median[case, "raw torch hooks"])
        rows.append(PeerRow(name, case, method, median[case, method], high - low, *ratios, errors[case, method], *facts, now))
    return rows


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net = gpt2()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        net.save_pretrained(folder)
        for batch, length in ((8, 64), (1, 8)):
            x = torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(0))
            rows = measure(f"gpt2 d128 4 blocks n{batch} t{length}", x, net, folder, args.runs)
            print(rows[0].model)
            for r in rows:
                print(
                    f"  {r.case:12s} {r.method:24s} {r.median * 1e3:7.2f} ms ± {r.iqr * 1e3:5.2f}  {r.over_plain:5.2f}x plain  "
                    f"{r.over_raw:5.2f}x raw  error {r.error:.1e}"
                )
            write_rows(rows, args.out)


if __name__ == "__main__":
    main()
