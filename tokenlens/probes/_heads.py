"""Linear heads on frozen features, one per learning rate, all trained together."""

# Shapes: N images, B images of a step, R rows of features (images, or patches of images), F channels of a feature,
# C classes, K heads (one for each learning rate).

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenlens.storage.wording import counted

SHARE_HELD_OUT = 0.2
"""Share of the training images on which k or the learning rate is chosen."""


@dataclass(frozen=True)
class Schedule:
    """The training schedule of heads.

    Args:
        optimizer: SGD with momentum 0.9, or AdamW.
        learning_rates: initial rates of a cosine schedule that ends at 0; one head each.
        batch_size: images per step.
        epochs: passes over the images.
        max_steps: an upper limit of the steps.
        weight_decay: weight decay.
    """

    optimizer: Literal["SGD", "AdamW"]
    learning_rates: tuple[float, ...]
    batch_size: int
    epochs: int
    max_steps: int
    weight_decay: float = 0.0

    def steps(self, count: int) -> int:
        """Return the number of steps for this many images."""
        return min(self.max_steps, self.epochs * max(1, count // min(self.batch_size, count)))

    def describe(self, count: int) -> str:
        """Return the schedule in words, for the protocol."""
        momentum = " (momentum 0.9)" if self.optimizer == "SGD" else ""
        steps = self.steps(count)
        return (
            f"{self.optimizer}{momentum}, cosine to 0, weight decay {self.weight_decay:g}, {steps} steps of "
            f"{min(self.batch_size, count)} images"
        )


class Heads(nn.Module):
    """BatchNorm without affine weights, then K linear maps in one matrix product.

    All heads share the BatchNorm, whose affine weights the linear maps can absorb. Its statistics are the mean over all
    steps (``momentum=None``), so the last batches do not dominate. The maps start at zero: the loss is convex.

    Args:
        channels: F.
        classes: C.
        count: K.
    """

    def __init__(self, channels: int, classes: int, count: int) -> None:
        super().__init__()
        self.classes, self.count = classes, count
        self.norm = nn.BatchNorm1d(channels, affine=False, momentum=None)
        # One parameter per head, because an optimizer sets the learning rate per parameter.
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(classes, channels)) for _ in range(count))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(classes)) for _ in range(count))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Heads:
        """Return one trained head with this ``state_dict``, in eval mode."""
        classes, channels = tensors["weights.0"].shape
        heads = cls(channels, classes, 1)
        heads.load_state_dict(tensors)
        return heads.to(device).eval()

    def forward(self, x_RF: Tensor) -> Tensor:
        """Return logits (R, K·C)."""
        return functional.linear(self.norm(x_RF), torch.cat(list(self.weights)), torch.cat(list(self.biases)))


def train_heads(
    loss_of: Callable[[Heads, np.ndarray, int], Tensor],
    indices: np.ndarray,
    channels: int,
    classes: int,
    schedule: Schedule,
    seed: int,
    device: torch.device,
    learning_rates: tuple[float, ...] | None = None,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> Heads:
    """Train heads on some images.

    Args:
        loss_of: returns the loss of each head, (K,), from the heads, the numbers of images (B,) and the epoch.
        indices: (N,) numbers of the images; at least two.
        channels: F.
        classes: C.
        schedule: the training schedule.
        seed: seed of the order of the images.
        device: where to train.
        learning_rates: replaces the schedule's.
        progress: called after each step; see ``tokenlens.probes.base.Progress``.

    Returns:
        The heads in eval mode.
    """
    rates = learning_rates or schedule.learning_rates
    heads = Heads(channels, classes, len(rates)).to(device)
    groups = [
        {"params": [weight, bias], "lr": rate}
        for weight, bias, rate in zip(heads.weights, heads.biases, rates, strict=True)
    ]
    decay = schedule.weight_decay
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(groups, momentum=0.9, weight_decay=decay)
        if schedule.optimizer == "SGD"
        else torch.optim.AdamW(groups, weight_decay=decay)
    )
    size, steps = min(schedule.batch_size, len(indices)), schedule.steps(len(indices))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    random = np.random.RandomState(seed % 2**32)
    epoch, order, first = 0, random.permutation(indices), 0
    what = f"training {counted(len(rates), 'head')}"
    if progress is not None:
        progress(what, 0, steps, "steps")
    for step in range(steps):
        if first + size > len(order):
            epoch, order, first = epoch + 1, random.permutation(indices), 0
        optimizer.zero_grad()
        # The sum gives each head the gradient of its own loss: heads do not affect each other.
        loss_of(heads, order[first : first + size], epoch).sum().backward()
        optimizer.step()
        cosine.step()
        if progress is not None:
            progress(what, step + 1, steps, "steps")
        first += size
    return heads.eval()


def train_with_best_rate(
    loss_of: Callable[[Heads, np.ndarray, int], Tensor],
    held: np.ndarray,
    score: Callable[[Heads, np.ndarray], Sequence[float]],
    channels: int,
    classes: int,
    schedule: Schedule,
    seed: int,
    device: torch.device,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> tuple[Heads, int, Sequence[float]]:
    """Train a head for each learning rate without the held-out images, then one on all images with the best rate.

    Args:
        loss_of, channels, classes, schedule, seed, device, progress: as in ``train_heads``.
        held: (N,) bool, which images are held out.
        score: returns the score of each head on the images with these numbers.

    Returns:
        The head, the index of its learning rate, and the score of each rate.
    """
    train = partial(train_heads, loss_of, channels=channels, classes=classes, schedule=schedule, seed=seed)
    tried = train(indices=np.flatnonzero(~held), device=device, progress=progress)
    scores = score(tried, np.flatnonzero(held))
    best = int(np.nanargmax(scores))
    rate = (schedule.learning_rates[best],)
    head = train(indices=np.arange(len(held)), device=device, learning_rates=rate, progress=progress)
    return head, best, scores


def hold_out(count: int, seed: int, labels_N: np.ndarray | None = None) -> np.ndarray:
    """Choose a fifth of the images (of each class, if there are labels) to select a setting on; (N,) bool.

    Classes with fewer than five images contribute none; if that leaves nothing, classes are ignored.
    """
    order = np.random.RandomState(seed % 2**32).permutation(count)
    groups = np.zeros(count, dtype=np.int64) if labels_N is None else labels_N
    held = np.zeros(count, dtype=bool)
    seen: dict[int, int] = {}
    for image in order:
        rank = seen.get(int(groups[image]), 0)
        seen[int(groups[image])] = rank + 1
        held[image] = rank % round(1 / SHARE_HELD_OUT) == round(1 / SHARE_HELD_OUT) - 1
    if not held.any():
        held[order[: max(1, round(SHARE_HELD_OUT * count))]] = True
    return held


def edge_note(best: int, rates: tuple[float, ...]) -> str:
    """Return a note if the best learning rate is the first or last of several."""
    at_edge = len(rates) > 1 and best in (0, len(rates) - 1)
    return " (at the end of the grid: a wider one may do better)" if at_edge else ""
