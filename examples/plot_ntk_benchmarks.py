"""
How fast, and in how much memory: the committed benchmark rows
==============================================================

Every number here is read from the rows that the benchmarks wrote. Each method was compared with a float64 oracle before it was timed;
methods took turns, on one thread where nothing else is said, and the newest row of each problem and method counts.
"""

# %%
# Reading the rows
# ----------------

import json
import os
from pathlib import Path

import plotly.graph_objects as go

from mechfeat.plots.style import BLUE, GREEN, GREY, ORANGE, figure

HERE = Path(globals().get("__file__", os.getcwd() + "/x")).resolve().parent
RESULTS = next(p for p in (HERE.parent / "benchmarks" / "results", HERE.parents[1] / "benchmarks" / "results") if p.is_dir())


def newest(name):
    found = {}
    for line in (RESULTS / name).read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["problem"], {})[row["method"]] = row
    return found


rows = newest("ntk.jsonl")
for problem, methods in rows.items():
    for method, row in methods.items():
        peak = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f} MiB"
        print(f"{problem:28s} {method:32s} {row['median']:9.4f} s  {peak:>9s}  error {row['error']:.0e}")

# %%
# Against Jacobian contraction
# ----------------------------
#
# The recipe of the ``torch.func`` tutorial forms the Jacobian of the whole network. Bars show how many times its seconds and its peak
# memory are ours.

peer = "torch.func jacobian contraction"
common = [problem for problem, methods in rows.items() if peer in methods]
times = [rows[p][peer]["median"] / rows[p]["mechfeat"]["median"] for p in common]
memory = [rows[p][peer]["peak_bytes"] / rows[p]["mechfeat"]["peak_bytes"] for p in common]
assert all(t > 1 for t in times)

figure(
    [
        go.Bar(y=common, x=times, name="time", orientation="h", marker_color=BLUE),
        go.Bar(y=common, x=memory, name="memory", orientation="h", marker_color=ORANGE),
    ],
    title="Jacobian contraction, in multiples of ours",
    x="times ours, logarithmic",
    xaxis_type="log",
    xaxis_range=[0, 3],  # from one to a thousand times
    height=420,
    bargap=0.25,
)

# %%
# What the outputs cost
# ---------------------
#
# The trace over outputs, equal outputs kept apart, and the summed outputs are computed by themselves rather than reduced from the full
# kernel.

kinds = ("mechfeat", "mechfeat trace", "mechfeat diagonal", "mechfeat pseudo")
names = ("full", "trace", "diagonal", "pseudo")
shown = [p for p, methods in rows.items() if all(kind in methods for kind in kinds)]
bars = [
    go.Bar(
        y=shown, x=[rows[p][kind]["median"] / rows[p]["mechfeat"]["median"] for p in shown], name=name, orientation="h", marker_color=color
    )
    for kind, name, color in zip(kinds, names, (GREY, BLUE, GREEN, ORANGE))
]

figure(bars, title="Seconds of each kind of outputs, as a share of the full kernel's", x="share of full", height=480, bargap=0.25)

# %%
# Against neural-tangents
# -----------------------
#
# Its structured derivatives run on jax 0.4.25; process seconds, one thread. A problem on which it does not finish has no seconds.

peers = newest("ntk_peers.jsonl")
for problem, methods in peers.items():
    ours, theirs = methods["mechfeat"], methods["neural-tangents structured"]
    if theirs["median"] is None:
        print(f"{problem:28s} did not finish: {theirs['failure']}")
        continue
    print(
        f"{problem:28s} {theirs['median'] / ours['median']:5.1f}x the seconds; peak {theirs['peak_bytes'] / 2**20:.0f} MiB, ours "
        f"{ours['peak_bytes'] / 2**20:.0f} MiB"
    )

# %%
# As the batch grows
# ------------------
#
# The kernel of N samples with O outputs has (N O)² entries; forming it by Jacobians needs N O P numbers besides, for P parameters.

more = newest("ntk_more.jsonl")
sweep = {int(p.removesuffix(", sweep").split(" n")[1]): methods for p, methods in more.items() if p.endswith(", sweep")}
lines = []
for method, color in (("mechfeat", BLUE), (peer, GREY)):
    sizes = sorted(n for n, methods in sweep.items() if method in methods)
    lines.append(go.Scatter(x=sizes, y=[sweep[n][method]["median"] for n in sizes], name=method, mode="lines+markers", marker_color=color))

figure(
    lines,
    title="Seconds of a kernel of N samples, 784-1024-1024-10",
    x="samples N, logarithmic",
    y="seconds, logarithmic",
    xaxis_type="log",
    yaxis_type="log",
    height=420,
)

# %%
# Two batches, all threads, other ways
# ------------------------------------
#
# Samples of one batch against those of another; all threads of the machine, wall-clock seconds; products of the kernel with each unit
# vector; and the dense Gram matrix of nngeometry.

for kind in ("two", "threads", "products", "nngeometry"):
    for problem, methods in more.items():
        name, _, section = problem.partition(", ")
        if section == kind:
            ours, theirs = sorted(methods.values(), key=lambda r: not r["method"].startswith("mechfeat"))
            print(
                f"{problem:38s} {theirs['median'] / ours['median']:7.1f}x  {ours['median']:8.4f} s  {theirs['method']}:"
                f" {theirs['median']:8.3f} s"
            )
