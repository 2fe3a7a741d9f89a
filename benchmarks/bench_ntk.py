"""The empirical NTK against Jacobian contraction, one thread: rows for results/ntk.jsonl."""

import sys
from pathlib import Path

from mechfeat.cli import main

if __name__ == "__main__":
    out = Path(__file__).parent / "results" / "ntk.jsonl"
    sys.exit(main(["bench", "ntk", "--threads", "1", "--out", str(out), *sys.argv[1:]]))
