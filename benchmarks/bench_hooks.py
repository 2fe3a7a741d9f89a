"""Runs with hooks against plain ones, one thread: rows for results/hooks.jsonl."""

import sys
from pathlib import Path

from mechfeat.cli import main

if __name__ == "__main__":
    out = Path(__file__).parent / "results" / "hooks.jsonl"
    sys.exit(main(["bench", "hooks", "--threads", "1", "--out", str(out), *sys.argv[1:]]))
