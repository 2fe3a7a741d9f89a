"""Tables of the README from the committed rows: the newest row of each problem and method."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKS = ("<!-- benchmark table: written by benchmarks/tables.py from benchmarks/results/ntk.jsonl -->", "<!-- end of benchmark table -->")


def newest(path: Path) -> dict[str, dict[str, dict]]:
    """Problem → method → its last row."""
    found: dict[str, dict[str, dict]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["problem"], {})[row["method"]] = row
    return found


def table(rows: dict[str, dict[str, dict]]) -> str:
    """The README's table, in Markdown."""
    lines = ["| problem | method | median | × time | peak memory | × memory |", "|---|---|--:|--:|--:|--:|"]
    facts = set()
    for problem, methods in rows.items():
        ours = methods["mechfeat"]
        for name, r in methods.items():
            cells = [f"{r['median'] * 1e3:.1f} ms", f"{r['median'] / ours['median']:.1f}"]
            if r["peak_bytes"] is None or not ours["peak_bytes"]:
                cells += ["–", "–"]
            else:
                cells += [f"{r['peak_bytes'] / 2**20:.0f} MiB", f"{r['peak_bytes'] / ours['peak_bytes']:.1f}"]
            lines.append("| " + " | ".join([problem, name, *cells]) + " |")
            facts.add(
                f"{r['dtype']}, {r['device']}, {r['threads']} thread{'s' if r['threads'] > 1 else ''}, torch {r['torch']}, {r['date'][:10]}"
            )
    note = (
        "Kernel of a batch with itself, full where no reduction is named; medians of interleaved runs, in process seconds where one thread"
        " runs. Each method is first compared with a float64 oracle: on the whole batch, or on its first and last four samples where the"
        " model has over 200,000 parameters or the batch over 64 samples. “First call” includes the proof, which later calls on the same"
        " kind of model and input need not repeat. Rows are the newest of each problem and were not all measured at one commit;"
        " `benchmarks/results/ntk.jsonl` names it. "
    )
    return "\n".join([*lines, "", note + "; ".join(sorted(facts)) + "."])


def main(check: bool) -> int:
    """Write the table, or compare it."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    body = table(newest(ROOT / "benchmarks" / "results" / "ntk.jsonl"))
    new = re.sub(re.escape(MARKS[0]) + r".*?" + re.escape(MARKS[1]), lambda _: f"{MARKS[0]}\n\n{body}\n\n{MARKS[1]}", text, flags=re.S)
    if check:
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
