"""One toy model trained by torch alone: modules of ``torch.nn``, a graph, and an optimiser of ``torch.optim``.

Written for comparison with banks, and shares no code with them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "identity": lambda x: x,
    "relu": torch.nn.ReLU(),
    "gelu": torch.nn.GELU(),
    "tanh": torch.nn.Tanh(),
}


class SingleToy(torch.nn.Module):
    """One model, with ``nn.Linear`` layers.

    Args:
        values: Parameters by the bank's names, of one instance without an instance axis.
        activation: Name of the output activation.
        hidden_activation: Name of the hidden activation.
        shift: Added before the output activation.
        scale: Multiplies the output's weights.
        unit_norm: Whether directions are used at length 1.
    """

    def __init__(
        self,
        values: dict[str, Tensor],
        *,
        activation: str = "relu",
        hidden_activation: str | None = None,
        shift: float = 0.0,
        scale: float = 1.0,
        unit_norm: bool = False,
    ) -> None:
        super().__init__()
        self.options = (activation, hidden_activation, shift, scale, unit_norm)
        self.values = torch.nn.ParameterDict({name: v.detach().clone() for name, v in values.items()})

    def forward(self, x: Tensor) -> Tensor:
        """Outputs.

        Args:
            x: ``[sample feature]``.

        Returns:
            ``[sample output]``.
        """
        activation, hidden_activation, shift, scale, unit_norm = self.options
        v = self.values
        embed = v["W"].T
        unembed = v["U"] if "U" in v else v["W"]
        if unit_norm:
            embed = embed / embed.pow(2).sum(0, keepdim=True).sqrt()
            unembed = unembed / unembed.pow(2).sum(1, keepdim=True).sqrt()
        hidden = torch.nn.functional.linear(x, embed, v.get("b_hidden", None))
        hidden = _ACTIVATIONS[hidden_activation](hidden)
        if "W_in" in v:
            neurons = _ACTIVATIONS["gelu"](torch.nn.functional.linear(hidden, v["W_in"].T, v["b_in"]))
            hidden = hidden + torch.nn.functional.linear(neurons, v["W_out"].T, v["b_out"])
        pre = scale * torch.nn.functional.linear(hidden, unembed)
        if "b" in v:
            pre = pre + v["b"]
        return _ACTIVATIONS[activation](pre + shift)


def loss_of(out: Tensor, y: Tensor, *, kind: str, importance: Tensor | None = None) -> Tensor:
    """The loss of a batch.

    Args:
        out: ``[sample output]``.
        y: Targets.
        kind: ``"mse"``, ``"l1"``, ``"l4"`` or ``"cross_entropy"``.
        importance: ``[output]``.

    Returns:
        A number.
    """
    if kind == "cross_entropy":
        return torch.nn.functional.cross_entropy(out, y)
    error = {"mse": (out - y) ** 2, "l1": (out - y).abs(), "l4": (out - y) ** 4}[kind]
    return (error if importance is None else importance * error).mean()


def train(
    model: SingleToy,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: Callable[[int], float],
    optimizer: str = "sgd",
    kind: str = "mse",
    importance: Tensor | None = None,
) -> list[float]:
    """Train one model.

    Args:
        model: The model; its parameters are changed.
        batches: Inputs and targets of a step.
        steps: Steps.
        lr: Learning rate of a step.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        kind: The loss.
        importance: ``[output]``.

    Returns:
        The loss before each step.
    """
    chosen: type[torch.optim.Optimizer] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    stepper = chosen(model.parameters(), lr=1.0)  # type: ignore[call-arg]
    losses = []
    for t in range(steps):
        for group in stepper.param_groups:
            group["lr"] = lr(t)
        x, y = batches(t)
        loss = loss_of(model(x), y, kind=kind, importance=importance)
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(float(loss.detach()))
    return losses
