"""Training by batches that can be killed at any moment and goes on where its last checkpoint was, to the same end."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Stopped(Exception):
    """Training was told to stop after a number of batches, as a kill would."""


@dataclass
class Training:
    """A network, its optimiser and what it walks through.

    Attributes:
        net: The network.
        optimizer: Its optimiser.
        batches: The batches of an epoch, by its number; the same ones whenever it is asked.
        loss: Loss of one batch.
        measure: Numbers to keep after each epoch.
        settings: What identifies the run; a checkpoint of another one is refused.
        path: The checkpoint.
        clip: Norm to which gradients are clipped.
        decay: Factor of the learning rate an epoch.
        every: Batches between checkpoints within an epoch.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Callable[[int], Sequence[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    measure: Callable[[nn.Module], dict[str, Any]]
    settings: dict[str, Any]
    path: Path
    clip: float | None = None
    decay: float = 1.0
    every: int = 500
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def run(self, epochs: int, *, stop_after: int | None = None) -> list[dict[str, Any]]:
        """Train up to a number of epochs, going on from the checkpoint if there is one; numbers of each epoch."""
        from tqdm.auto import tqdm

        epoch, at, total = self._resume()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        done, started = 0, time.process_time()
        before = self.seconds
        while epoch < epochs:
            batches = self.batches(epoch)
            for group, rate in zip(self.optimizer.param_groups, rates):
                group["lr"] = rate * self.decay**epoch
            bar = tqdm(range(at, len(batches)), desc=f"{self.path.stem} epoch {epoch + 1}/{epochs}", initial=at, total=len(batches))
            for i in bar:
                self.net.train()
                self.optimizer.zero_grad()
                loss = self.loss(self.net, batches[i])
                loss.backward()
                if self.clip is not None:
                    nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
                self.optimizer.step()
                total += loss.item()
                done += 1
                if not math.isfinite(total):
                    raise SystemExit(f"The loss is {total} in epoch {epoch + 1}, batch {i + 1}.")
                if stop_after is not None and done >= stop_after:
                    raise Stopped
                if (i + 1) % self.every == 0 and i + 1 < len(batches):
                    self.seconds = before + time.process_time() - started
                    self._save(epoch, i + 1, total, rates)
            self.net.eval()
            with torch.no_grad():
                found = {"epoch": epoch + 1, "train_loss": total / len(batches), **self.measure(self.net)}
            self.curve.append(found)
            bar.write(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()))
            epoch, at, total = epoch + 1, 0, 0.0
            self.seconds = before + time.process_time() - started
            self._save(epoch, at, total, rates)
        self.net.eval()
        return self.curve

    def _save(self, epoch: int, at: int, total: float, rates: list[float]) -> None:
        state = {
            "settings": self.settings,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rates": rates,
            "generator": torch.get_rng_state(),
            "place": (epoch, at, total),
            "curve": self.curve,
            "seconds": self.seconds,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.path)  # a kill leaves the old checkpoint or the new one, never half of one

    def _resume(self) -> tuple[int, int, float]:
        if not self.path.exists():
            return 0, 0, 0.0
        state = torch.load(self.path, weights_only=True)
        if state["settings"] != self.settings:
            keys = sorted(set(state["settings"]) | set(self.settings))
            both = {k: (state["settings"].get(k), self.settings.get(k)) for k in keys}
            differ = "; ".join(f"{k}: {there!r} there, {here!r} here" for k, (there, here) in both.items() if there != here)
            raise SystemExit(f"{self.path} is the checkpoint of another run ({differ}). Choose another --folder, or delete it.")
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, state["rates"]):
            group["lr"] = rate
        torch.set_rng_state(state["generator"])
        self.curve[:] = state["curve"]
        self.seconds = state["seconds"]
        epoch, at, total = state["place"]
        return epoch, at, total


def shuffled(n: int, size: int, seed: int) -> Callable[[int], list[Tensor]]:
    """Batches of indices in an order that depends on seed and epoch alone."""

    def batches(epoch: int) -> list[Tensor]:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
        return list(order.split(size))

    return batches
