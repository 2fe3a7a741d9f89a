"""Infinite-width kernels of small deep networks by neural-tangents 0.6.5, as test data for ``mechfeat.ntk.analytic``.

It runs in the environment of that library (``README.md`` beside this file) and writes one JSON file: the networks as lists of layers, the
shape of their inputs, and both kernels in float64 of ``inputs(shape, 3)`` with itself and with ``inputs(shape, 2, 5)``.

    peers-jax/bin/python benchmarks/peers/deep_kernels.py tests/ntk/analytic/neural_tangents.json
"""

import json
import os
import sys
import types
import warnings
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")  # it would import TensorFlow
warnings.simplefilter("ignore")

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)

import neural_tangents as nt  # noqa: E402
import numpy as np  # noqa: E402
from neural_tangents import stax  # noqa: E402


def dense(W_std=1.0, b_std=0.0):
    return ["Dense", {"W_std": W_std, "b_std": b_std}]


def conv(kernel, **options):
    return ["Conv", {"kernel": kernel, "W_std": 1.3, "b_std": 0.2, **options}]


def act(name):
    return ["Nonlinearity", {"phi": name}]


def block(body, shortcut=()):
    return ["Residual", {"body": body, "shortcut": list(shortcut)}]


FLATTEN, MEAN, READ = ["Flatten", {}], ["GlobalAvgPool", {}], dense(1.1, 0.3)
PLAIN = [7]
LINE = [3, 8]
IMAGE = [3, 6, 5]
NETWORKS = {
    "linear read-out": (PLAIN, [dense(1.5, 0.4)]),
    **{f"one hidden layer, {phi}": (PLAIN, [dense(1.4, 0.3), act(phi), dense(0.9)]) for phi in ("leaky_relu", "sin", "cos", "exp")},
    **{f"four hidden layers, {phi}": (PLAIN, [*([dense(1.4, 0.3), act(phi)] * 4), READ]) for phi in ("relu", "erf", "gelu")},
    "no biases, relu": (PLAIN, [*([dense(1.4), act("relu")] * 2), dense()]),
    "residual, relu": (PLAIN, [dense(1.2, 0.1), *([block([act("relu"), dense(1.1, 0.2)])] * 3), act("gelu"), READ]),
    "residual with shortcut, erf": (PLAIN, [block([dense(), act("erf"), dense(1.3)], [dense(0.7)]), act("erf"), READ]),
    "line, same, flatten": (LINE, [conv(3), act("relu"), conv(4), act("erf"), FLATTEN, READ]),
    "line, circular, mean": (LINE, [conv(3, padding="circular"), act("relu"), conv(2, padding="circular"), act("gelu"), MEAN, READ]),
    "line, pooled, strided": (LINE, [conv(3, stride=2), act("relu"), ["AvgPool", {"window": 2}], conv(2), act("relu"), MEAN, READ]),
    **{
        f"image, {padding}, {name}": (IMAGE, [conv(3, padding=padding), act("relu"), conv(2, padding=padding), act("gelu"), read, READ])
        for padding in ("same", "circular", "valid")
        for name, read in (("flatten", FLATTEN), ("mean", MEAN))
    },
    "image, strides, flatten": (IMAGE, [conv([3, 2], stride=[2, 1]), act("relu"), conv(3, stride=2), act("erf"), FLATTEN, READ]),
    "image, strides, circular, mean": (IMAGE, [conv(3, stride=2, padding="circular"), act("relu"), conv(2), act("erf"), MEAN, READ]),
    "image, overlapping pool": (
        IMAGE,
        [conv(2), act("relu"), ["AvgPool", {"window": [3, 2], "stride": [1, 2]}], conv(3), act("gelu"), FLATTEN, READ],
    ),
    "image, pooled, hidden layer": (IMAGE, [conv(2), act("relu"), ["AvgPool", {"window": 2}], FLATTEN, dense(1.3, 0.1), act("relu"), READ]),
    "residual network": (
        IMAGE,
        [
            conv(3),
            block([act("relu"), conv(3), act("relu"), conv(3)]),
            block([act("relu"), conv(3, stride=2), act("relu"), conv(3)], [conv(1, stride=2)]),
            act("relu"),
            MEAN,
            READ,
        ],
    ),
}


def inputs(shape, n, start=0):
    """Inputs without a random generator, exact in binary: quotients by 32 that repeat after 101."""
    size = int(np.prod(shape))
    i = start * size + np.arange(n * size)
    return (((i * i * 37 + 11 * i) % 101 - 50) / 32.0).reshape(n, *shape)


def pair(size, space):
    return tuple(size) if isinstance(size, list) else (size,) * space


def layer(description, space):
    """A layer of that library."""
    name, options = description
    if name == "Dense":
        return stax.Dense(1, W_std=options["W_std"], b_std=options["b_std"] or None)
    if name == "Conv":
        kernel, stride = pair(options["kernel"], space), pair(options.get("stride", 1), space)
        axes = ("NHC", "HIO", "NHC") if space == 1 else ("NHWC", "HWIO", "NHWC")
        padding = options.get("padding", "same").upper()
        return stax.Conv(1, kernel, stride, padding, W_std=options["W_std"], b_std=options["b_std"] or None, dimension_numbers=axes)
    if name == "Nonlinearity":
        return {
            "relu": stax.Relu,
            "leaky_relu": lambda: stax.LeakyRelu(0.01),
            "erf": stax.Erf,
            "gelu": stax.Gelu,
            "sin": stax.Sin,
            "cos": stax.Cos,
            "exp": stax.Exp,
        }[options["phi"]]()
    if name == "AvgPool":
        window = pair(options["window"], space)
        return stax.AvgPool(window, pair(options.get("stride", options["window"]), space))
    if name == "Residual":
        branches = [
            stax.serial(*(layer(one, space) for one in options[side])) if options[side] else stax.Identity()
            for side in ("body", "shortcut")
        ]
        return stax.serial(stax.FanOut(2), stax.parallel(*branches), stax.FanInSum())
    return {"Flatten": stax.Flatten, "GlobalAvgPool": stax.GlobalAvgPool}[name]()


def main(path: str) -> None:
    """Write the file."""
    rows = {}
    for name, (shape, layers) in NETWORKS.items():
        *_, kernel = stax.serial(*(layer(one, len(shape) - 1) for one in layers))
        x1, x2 = (np.moveaxis(x, 1, -1) for x in (inputs(shape, 3), inputs(shape, 2, 5)))
        rows[name] = {"shape": shape, "layers": layers}
        for key, other in (("same", None), ("other", x2)):
            found = kernel(x1, other, get=("nngp", "ntk"))
            rows[name][key] = {"nngp": np.asarray(found.nngp).tolist(), "ntk": np.asarray(found.ntk).tolist()}
    versions = {"neural-tangents": nt.__version__, "jax": jax.__version__}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    Path(path).write_text(f'{{"versions": {json.dumps(versions)}, "networks": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
