"""Benchmarks: problems, methods, literal oracles, and a harness that verifies before it times."""

from mechfeat.bench.harness import Row, compare, write_rows
from mechfeat.bench.methods import METHODS, Method
from mechfeat.bench.overheads import OverheadRow, overhead
from mechfeat.bench.problems import PROBLEMS, Problem

__all__ = ["METHODS", "PROBLEMS", "Method", "OverheadRow", "Problem", "Row", "compare", "overhead", "write_rows"]
