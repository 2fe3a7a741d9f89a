"""What a forward pass may not do where a kernel is wanted: draw at random, or mix the samples of a batch. Seen at the call."""

from typing import Any

import torch

from mechfeat.errors import NondeterministicModelError, SampleInteractionError

_DROPOUTS = {
    f"{kind}dropout{d}{end}" for kind in ("", "alpha_", "feature_", "feature_alpha_") for d in ("", "1d", "2d", "3d") for end in ("", "_")
}


def check_dropout(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse active dropout.

    Args:
        function: What is called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        NondeterministicModelError: It draws at random.
    """
    name = getattr(function, "__name__", "")
    if name in _DROPOUTS:
        p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    elif name == "scaled_dot_product_attention":
        p, training = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0), True
    else:
        return
    if training and p:
        raise NondeterministicModelError(
            f"{name} is active (p={p:g}), so two evaluations of the model differ and its kernel is a random variable. Call "
            "model.eval(), or set p to 0."
        )


def check_statistics(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse batch norm in train mode.

    Args:
        function: What is called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        SampleInteractionError: It uses the statistics of the batch.
    """
    if function is not torch.nn.functional.batch_norm:
        return
    mean, var, _, _, training = (args[i] if len(args) > i else kwargs.get(name) for i, name in enumerate(_BATCH_NORM, 1))
    if training or mean is None or var is None:
        raise SampleInteractionError(
            "batch_norm uses the statistics of the batch, so the output for one sample depends on the others and a per-sample kernel "
            "is not defined. Call model.eval(), so that it uses its running statistics."
        )


_BATCH_NORM = ("running_mean", "running_var", "weight", "bias", "training")
