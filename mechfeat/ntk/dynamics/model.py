"""What the tangent kernel at the start says that training will do, beside what training does.

A network trains like its linearisation as long as its kernel stays where it was. How long that is, is measured: the network is trained, and
the share of its movement that the kernel foresaw is a finding, against kernels that were given the labels in another order.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechfeat.errors import OptionError, ShapeError
from mechfeat.features import Finding, signal_share, storable
from mechfeat.hooks import HookedModel, unwrap
from mechfeat.ntk.capture import trainable
from mechfeat.ntk.checks import check_input, check_model, check_output
from mechfeat.ntk.dynamics.kernel import KernelDynamics
from mechfeat.ntk.dynamics.losses import Loss, Reduction, gradient, targets
from mechfeat.ntk.empirical import empirical_ntk
from mechfeat.ntk.tangent import differentiable
from mechfeat.ntk.taps import quiet
from mechfeat.nulls import permuted_labels

Direction = Mapping[str, Tensor]


def linearize(model: nn.Module | HookedModel) -> Callable[[Tensor, Direction], Tensor]:
    r"""The model's first-order expansion in its trainable parameters, at their present values.

    .. math:: f_{lin}(x, Δθ) = f(x) + \frac{∂ f(x)}{∂ θ} Δθ

    Args:
        model: The model. Parameters are copied, so that training it later changes nothing here; buffers are not.

    Returns:
        A function of a batch and a change of parameters by name (what is not named does not change), which returns outputs of the model's
        shape. It is differentiable in the change.

    Raises:
        NoParametersError: The model has no trainable parameters.

    Cost:
        One forward-mode pass a call: about three forward passes.

    Source:
        Lee et al. 2019, *Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient Descent*, equation 5.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> expanded = linearize(net)
        >>> x, change = torch.ones(3, 2), {"weight": torch.ones(1, 2)}
        >>> torch.allclose(expanded(x, change), net(x) + 2)
        True
    """
    module = unwrap(model)
    check_model(module)
    start = {name: p.detach().clone() for name, p in trainable(module).items()}

    def linearized(x: Tensor, change: Direction) -> Tensor:
        unknown = sorted(set(change) - set(start))
        if unknown:
            raise OptionError("change", unknown[0], tuple(start))

        def outputs(values: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(module, values, (x,), tie_weights=True)

        along = {name: change.get(name, torch.zeros_like(p)) for name, p in start.items()}
        with differentiable(module), quiet():
            f, moved = torch.func.jvp(outputs, (start,), (along,))[:2]
        return f + moved

    return linearized


@storable
@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingPrediction(Finding):
    """Outputs that the kernel predicts for after training, and those of the trained network.

    Attributes:
        steps: Numbers of steps at which outputs were compared.
        initial: Outputs on the held-out inputs before training.
        predicted: Predicted outputs there.
        actual: Outputs of the network, trained.
        predicted_train: Predicted outputs on the training inputs.
        actual_train: Outputs of the network there.
        drift: Change of the kernel between held-out and training inputs over all of training, relative to its norm: near 0 in the kernel
            regime. None if it was not measured.
    """

    steps: tuple[int, ...]
    initial: Float[Tensor, "test o"]
    predicted: Float[Tensor, "step test o"]
    actual: Float[Tensor, "step test o"]
    predicted_train: Float[Tensor, "step train o"]
    actual_train: Float[Tensor, "step train o"]
    drift: float | None = None

    @property
    def relative_errors(self) -> Float[Tensor, " step"]:
        """Error of the prediction over the movement, ‖predicted − actual‖ / ‖actual − initial‖, held out; NaN before any movement."""
        gap = (self.predicted - self.actual).flatten(1).double().norm(dim=1)
        return gap / (self.actual - self.initial).flatten(1).double().norm(dim=1)

    @property
    def explained(self) -> Float[Tensor, " step"]:
        r"""Share of the movement that was predicted, :math:`1 - \|p - a\|^2 / \|a - f_0\|^2`: 1 at best, 0 for predicting no movement."""
        return 1 - self.relative_errors.square()


def predict_training(
    model: nn.Module | HookedModel,
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    *,
    loss: Loss,
    lr: int | float,
    steps: int | Sequence[int],
    reduction: Reduction = "mean",
    outputs: Literal["full", "trace", "diagonal"] = "full",
    drift: bool = True,
    n_null: int = 99,
    n_boot: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> TrainingPrediction:
    """Predicts gradient descent from the kernel at the start, trains a copy of the network, and compares them on held-out inputs.

    Descent is over the full batch. The prediction is that of the linearised network, without its Jacobian and without its parameters.

    Args:
        model: The model, in the mode it shall be used in. It is not changed: a copy is trained.
        x_train: Training inputs.
        y_train: Targets, as :class:`KernelDynamics` takes them; outputs of the model with several axes count as one axis of outputs.
        x_test: Held-out inputs.
        loss: ``"squared"``, ``"logistic"`` or ``"softmax"``, as :class:`KernelDynamics` defines them.
        lr: Learning rate.
        steps: Steps of descent, or several numbers of them.
        reduction: Mean or sum over samples.
        outputs: The kernel that predicts: ``"full"`` is the linearised network itself; ``"diagonal"`` leaves out what outputs teach each
            other, and ``"trace"`` also takes all outputs to learn by their mean kernel, as at infinite width.
        drift: Measure how far the kernel has moved after training, which costs a kernel more.
        n_null: Permutations of the training targets; 0 for no null.
        n_boot: Bootstrap draws of held-out inputs.
        seed: Seed of permutations and bootstrap. Training is deterministic.
        progress: Show a progress bar of the training.

    Returns:
        ``value``: :attr:`~TrainingPrediction.explained` after the last step, over held-out inputs and outputs, at most 1, dimensionless; 0
        is the prediction that nothing moves. ``null``: the same for the prediction from permuted training targets, which knows how the
        network learns but not what it is taught. ``interval``: bootstrap over held-out inputs, 95 %. ``reliability``: share of signal in
        the distance to the null, by the bootstrap's standard error. ``n``: number of held-out inputs. There is no null where all targets
        are equal.

    Raises:
        OptionError: A number of steps is not whole or below 1, or a count of draws below 0.
        ShapeError: The network does not move.

    What :func:`empirical_ntk` and :class:`KernelDynamics` raise is raised as well.

    Cost:
        Two kernels (three with ``drift``), the dynamics of ``1 + n_null`` label orders, and one forward and backward pass a step.

    Source:
        Lee et al. 2019, *Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient Descent*, section 3.

    Example:
        >>> net = nn.Linear(2, 1)  # linear in its parameters, so that the prediction is exact
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> found = predict_training(net, x, torch.tensor([1.0, 2.0, 0.0]), -x, loss="squared", lr=0.1, steps=[1, 10])
        >>> found.explained.round(decimals=6).tolist(), found.drift < 1e-6
        ([1.0, 1.0], True)
    """
    stops = tuple(steps) if isinstance(steps, Sequence) else (steps,)
    if not stops or any(not (isinstance(k, int) and k >= 1) for k in stops):
        raise OptionError("steps", steps, ("a number of steps, at least 1", "several of them"))
    for option, count in (("n_null", n_null), ("n_boot", n_boot)):
        if count < 0:
            raise OptionError(option, count, ("a number of draws, 0 for none",))
    if outputs not in ("full", "trace", "diagonal"):
        raise OptionError("outputs", outputs, ("full", "trace", "diagonal"))
    module = unwrap(model)
    one = next(iter(check_model(module).values()))
    x_train, x_test = check_input(x_train, "x_train", one), check_input(x_test, "x_test", one)
    theta = empirical_ntk(module, x_train, outputs=outputs)
    cross = empirical_ntk(module, x_test, x_train, outputs=outputs)
    f_train, f_test = _plain(module, x_train, "x_train"), _plain(module, x_test, "x_test")
    training = KernelDynamics(theta, y_train, loss=loss, lr=lr, reduction=reduction, f0=f_train)

    trained = copy.deepcopy(module)
    actual_train, actual = _train(trained, x_train, training, y_train, x_test, stops, progress)
    predicted_train, predicted = training.at(stops).to(actual), training.at(stops, cross, f_test).to(actual)
    moved = (actual[-1] - f_test).double()
    if not bool(moved.any()):
        raise ShapeError(
            f"The outputs of the network on x_test are the same after {stops[-1]} steps as before: there is nothing to predict."
        )

    def explained(p: Tensor, rows: Tensor | slice = slice(None)) -> float:
        return 1 - float((p.double() + f_test.double() - actual[-1].double())[rows].square().sum() / moved[rows].square().sum())

    generator = torch.Generator().manual_seed(seed)
    change = predicted[-1] - f_test
    value, null, reliability, interval = explained(change), None, None, None
    reason = _no_null(y_train, n_null)
    if reason is None:
        orders = permuted_labels(torch.arange(len(x_train)), n_null, generator=generator)
        null = torch.tensor([explained(p.to(actual)) for p in training.shuffled(orders, stops[-1], cross)], dtype=torch.float64)
    if n_boot:
        rows = torch.randint(len(x_test), (n_boot, len(x_test)), generator=generator).to(moved.device)
        again = torch.tensor([explained(change, r) for r in rows], dtype=torch.float64)
        again = again[again.isfinite()]  # a draw of inputs that do not move has no share
        if len(x_test) >= 4 and len(again) >= 2:
            low, high = again.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            interval = (low, high)
            reliability = None if null is None else signal_share(value, null, float(again.std()))
    settings = {
        "loss": loss,
        "lr": float(lr),
        "lr_limit": training.lr_limit,
        "reduction": reduction,
        "outputs": outputs,
        "n_train": len(x_train),
        "null": "permuted_labels",
        "n_null": n_null,
        "n_boot": n_boot,
        "unit": "held-out input",
        **({"no null because": reason} if reason else {}),
    }
    return TrainingPrediction(
        value=value,
        n=len(x_test),
        seed=seed,
        null=null,
        reliability=reliability,
        interval=interval,
        settings=settings,
        steps=stops,
        initial=f_test,
        predicted=predicted,
        actual=actual,
        predicted_train=predicted_train,
        actual_train=actual_train,
        drift=_drift(cross.kernel, empirical_ntk(trained, x_test, x_train, outputs=outputs).kernel) if drift else None,
    )


def _plain(module: nn.Module, x: Tensor, side: str) -> Float[Tensor, "n o"]:
    with torch.no_grad():
        return check_output(module(x.clone()), len(x), side)


def _train(
    module: nn.Module, x: Tensor, training: KernelDynamics, y: Tensor, x_test: Tensor, stops: Sequence[int], progress: bool
) -> tuple[Float[Tensor, "step n o"], Float[Tensor, "step test o"]]:
    """Plain gradient descent of the module itself, and its outputs at the stops."""
    from tqdm.auto import tqdm

    parameters = trainable(module)
    Y = targets(y, training.loss, training.n, training.o)
    rate = training.lr / (training.n if training.reduction == "mean" else 1)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for step in tqdm(range(1, max(stops) + 1), desc="train", unit="step", disable=not progress):
        with torch.enable_grad():
            f = module(x.clone()).reshape(len(x), -1)
            gradients = torch.autograd.grad(
                f, list(parameters.values()), gradient(f.detach().double(), Y, training.loss).to(f), allow_unused=True
            )
        with torch.no_grad():
            for p, g in zip(parameters.values(), gradients):
                if g is not None:
                    p.sub_(g, alpha=rate)
        if step in stops:
            found[step] = _plain(module, x, "x_train"), _plain(module, x_test, "x_test")
    return torch.stack([found[k][0] for k in stops]), torch.stack([found[k][1] for k in stops])


def _no_null(y: Tensor, n_null: int) -> str | None:
    if n_null == 0:
        return "n_null is 0"
    return "all targets are equal" if bool((y == y[0]).all()) else None


def _drift(before: Tensor, after: Tensor) -> float:
    norm = float(before.double().norm())
    return float((after.double() - before.double()).norm()) / norm if norm else math.inf
