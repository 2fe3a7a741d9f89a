"""Training a classifier: enough for examples and tests, not a framework."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def train(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Tensor,
    *,
    epochs: int,
    lr: float = 3e-3,
    batch: int = 64,
    generator: torch.Generator,
    progress: bool = False,
) -> list[float]:
    """Train a classifier with AdamW and a learning rate that falls linearly to zero.

    Args:
        model: The model; its parameters are changed.
        x: Inputs.
        y: Class indices.
        epochs: Passes over the data.
        lr: Initial learning rate.
        batch: Batch size.
        generator: Source of the order of samples.
        progress: Show a progress bar.

    Returns:
        Mean cross-entropy of each epoch, in nats.
    """
    from tqdm.auto import tqdm

    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    losses = []
    for _ in tqdm(range(epochs), desc="train", unit="epoch", disable=not progress):
        total = 0.0
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        losses.append(total / len(x))
    return losses
