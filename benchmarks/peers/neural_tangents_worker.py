"""Kernels by neural-tangents 0.6.5 on jax 0.4.25, for ``bench_ntk_peers.py``: reads a problem, answers one line a request.

Its structured derivatives run on a jax of that age alone. It is started in an environment of its own (``README.md`` beside this file)
with one argument, an ``.npz`` with the parameters of a torch module in the order of its ``state_dict``, the input ``x`` and the text
``kind``. On standard input, ``save METHOD FILE`` stores the kernel ``[n o m p]`` in float32, ``time METHOD`` prints process and wall
seconds of a run, ``peak METHOD``, asked first, the growth of the resident high-water mark in bytes.
"""

import os
import sys
import time
import types
import warnings
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")  # it would import TensorFlow
warnings.simplefilter("ignore")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import neural_tangents as nt  # noqa: E402
import numpy as np  # noqa: E402

METHODS = {"jacobian": 1, "ntvp": 2, "structured": 3}


# Parameters are laid out as the peer's own rules like them, [in out] and [h w in out] on [n h w channel]: behind a transposition inside the
# model it would fall back to whole Jacobians. Re-ordering entries of a parameter leaves the kernel as it is.


def conv(w, x, stride=1):
    """Convolution padded to keep its size."""
    pad = w.shape[0] // 2
    return jax.lax.conv_general_dilated(x, w, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def turned(v):
    """A parameter of torch in the layout used here."""
    return v.T if v.ndim == 2 else v.transpose(2, 3, 1, 0) if v.ndim == 4 else v


def norm(weight, bias, mean, variance, x):
    """Batch norm with stored statistics."""
    return (x - mean) / jnp.sqrt(variance + 1e-5) * weight + bias


def perceptron(values, activation):
    """Linear layers with an activation between them."""
    params = [list(map(turned, values[i : i + 2])) for i in range(0, len(values), 2)]

    def f(params, x):
        for i, (w, b) in enumerate(params):
            x = x @ w + b
            if i < len(params) - 1:
                x = activation(x)
        return x

    return f, params


def vgg(values):
    """Pairs of 3 x 3 convolutions with mean pooling after each pair, a hidden layer and a read-out."""
    c = values[-6].shape[0]
    side = int((values[-4].shape[1] // c) ** 0.5)
    hidden = values[-4].reshape(-1, c, side, side).transpose(2, 3, 1, 0).reshape(side * side * c, -1)  # reads [h w channel] here
    values = [*map(turned, values[:-4]), hidden, values[-3], *map(turned, values[-2:])]
    params = [values[i : i + 2] for i in range(0, len(values), 2)]

    def f(params, x):
        *convs, (wh, bh), (wo, bo) = params
        for i, (w, b) in enumerate(convs):
            x = jax.nn.relu(conv(w, x) + b)
            if i % 2:
                n, height, width, c = x.shape
                x = x.reshape(n, height // 2, 2, width // 2, 2, c).mean((2, 4))
        return jax.nn.relu(x.reshape(len(x), -1) @ wh + bh) @ wo + bo

    return f, params


def resnet(values):
    """A residual network of basic blocks: convolution and batch norm in the order torch stores them, statistics not trained."""
    queue = list(values)
    params, fixed, strides = [], [], []

    def add(stride):
        w, weight, bias, mean, variance, _ = (queue.pop(0) for _ in range(6))  # the last one counts batches
        params.append([turned(w), weight, bias])
        fixed.append((mean, variance))
        strides.append(stride)
        return w.shape[0]

    width, plan = add(1), []
    while len(queue) > 2:
        stride = 2 if queue[0].shape[0] != width else 1
        width = add(stride)
        add(1)
        projected = len(queue) > 2 and queue[0].shape[-1] == 1
        if projected:
            add(stride)
        plan.append(projected)

    def f(params, x):
        *layers, (w, b) = params
        i = 0

        def step(x):
            nonlocal i
            kernel, weight, bias = layers[i]
            y = norm(weight, bias, *fixed[i], conv(kernel, x, strides[i]))
            i += 1
            return y

        x = jax.nn.relu(step(x))
        for projected in plan:
            y = step(jax.nn.relu(step(x)))
            x = jax.nn.relu(y + (step(x) if projected else x))
        return x.mean((1, 2)) @ w + b

    return f, [*params, list(map(turned, queue))]


KINDS = {
    "mlp-relu": lambda v: perceptron(v, jax.nn.relu),
    "mlp-tanh": lambda v: perceptron(v, jnp.tanh),
    "vgg": vgg,
    "resnet": resnet,
}


def high_water() -> int:
    """Resident high-water mark in bytes."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def main(path: str) -> None:
    """Answer requests until the input ends."""
    data = np.load(path)
    values = [jnp.asarray(data[k]) for k in sorted(data.files) if k.startswith("p")]
    f, params = KINDS[str(data["kind"])](values)
    x = jnp.asarray(data["x"])
    x = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
    compiled = {}

    def prepared(method):
        if method not in compiled:
            kernel = nt.empirical_ntk_fn(f, trace_axes=(), vmap_axes=0, implementation=METHODS[method])
            compiled[method] = jax.jit(kernel).lower(x, None, params).compile()
        return compiled[method]

    def run(method):
        return prepared(method)(x, None, params).block_until_ready()

    print("ready", flush=True)
    for line in sys.stdin:
        request, method, *rest = line.split()
        if request == "save":
            theta = np.asarray(run(method))  # [n m o p]
            np.save(rest[0], theta.transpose(0, 2, 1, 3))
            print("saved", flush=True)
        elif request == "peak":
            prepared(method)
            Path("/proc/self/clear_refs").write_text("5")
            before = high_water()
            run(method)
            print(high_water() - before, flush=True)
        else:
            run(method)
            cpu, wall = time.process_time(), time.perf_counter()
            run(method)
            print(time.process_time() - cpu, time.perf_counter() - wall, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
