"""Linear heads on frozen features, one for each learning rate, trained at once, and the choice among them."""

# Shapes: N images, B images of a step, R rows of features (images, or patches of images), F channels of a feature,
# C classes, K heads (one for each learning rate).

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SHARE_HELD_OUT = 0.2
"""Of the training images, on which k or the learning rate is chosen."""


@dataclass(frozen=True)
class Schedule:
    """How heads are trained.

    Args:
        optimizer: SGD with momentum 0.9, or AdamW.
        learning_rates: at the start of a cosine that ends at 0; a head for each.
        batch_size: images of a step.
        epochs: passes over the images.
        most_steps: fewer passes where they would take more steps than this.
        weight_decay: of the weights.
    """

    optimizer: Literal["SGD", "AdamW"]
    learning_rates: tuple[float, ...]
    batch_size: int
    epochs: int
    most_steps: int
    weight_decay: float = 0.0

    def steps(self, count: int) -> int:
        """How many there are with this many images."""
        return min(self.most_steps, self.epochs * max(1, count // min(self.batch_size, count)))

    def text(self, count: int) -> str:
        """For the protocol."""
        momentum = " (momentum 0.9)" if self.optimizer == "SGD" else ""
        steps = self.steps(count)
        return (
            f"{self.optimizer}{momentum}, cosine to 0, weight decay {self.weight_decay:g}, {steps} steps of "
            f"{min(self.batch_size, count)} images"
        )


class Heads(nn.Module):
    """BatchNorm without weights of its own, then K linear maps, in one matrix product.

    The BatchNorm has no weights because a linear map follows that can hold them; all heads share it. Its statistics are
    the mean over all steps (``momentum=None``), which the last few batches do not decide. The maps start at zero: the
    loss is convex, so there is nothing to draw.

    Args:
        channels: F.
        classes: C.
        count: K.
    """

    def __init__(self, channels: int, classes: int, count: int) -> None:
        super().__init__()
        self.classes, self.count = classes, count
        self.norm = nn.BatchNorm1d(channels, affine=False, momentum=None)
        # A parameter for each head: an optimizer's learning rate belongs to whole parameters.
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(classes, channels)) for _ in range(count))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(classes)) for _ in range(count))

    def forward(self, x_RF: Tensor) -> Tensor:
        """Logits (R, K·C)."""
        return functional.linear(self.norm(x_RF), torch.cat(list(self.weights)), torch.cat(list(self.biases)))


def fit(
    loss_of: Callable[[Heads, np.ndarray, int], Tensor],
    places: np.ndarray,
    channels: int,
    classes: int,
    schedule: Schedule,
    seed: int,
    device: torch.device,
    learning_rates: tuple[float, ...] | None = None,
) -> Heads:
    """Train heads on some images.

    Args:
        loss_of: of the heads, which images (B,) and the number of the pass: the loss of each head, (K,).
        places: (N,) numbers of the images; at least two.
        channels: F.
        classes: C.
        schedule: how.
        seed: of the order of the images.
        device: where.
        learning_rates: instead of the schedule's.

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
    size, steps = min(schedule.batch_size, len(places)), schedule.steps(len(places))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    random = np.random.RandomState(seed % 2**32)
    epoch, order, first = 0, random.permutation(places), 0
    for _ in range(steps):
        if first + size > len(order):
            epoch, order, first = epoch + 1, random.permutation(places), 0
        optimizer.zero_grad()
        # Each head's gradient is that of its own loss: a head does not see the others.
        loss_of(heads, order[first : first + size], epoch).sum().backward()
        optimizer.step()
        cosine.step()
        first += size
    return heads.eval()


def held_out(count: int, seed: int, labels_N: np.ndarray | None = None) -> np.ndarray:
    """(N,) bool: a fifth of the images (of each class, where there are labels) to choose a setting on.

    Of a class with fewer than five images none is held out; where that leaves nothing, classes do not count.
    """
    order = np.random.RandomState(seed % 2**32).permutation(count)
    groups = np.zeros(count, dtype=np.int64) if labels_N is None else labels_N
    held = np.zeros(count, dtype=bool)
    seen: dict[int, int] = {}
    for place in order:
        rank = seen.get(int(groups[place]), 0)
        seen[int(groups[place])] = rank + 1
        held[place] = rank % round(1 / SHARE_HELD_OUT) == round(1 / SHARE_HELD_OUT) - 1
    if not held.any():
        held[order[: max(1, round(SHARE_HELD_OUT * count))]] = True
    return held


def edge_note(chosen: int, of: tuple[float, ...]) -> str:
    """What to say where the best of a grid is its first or last."""
    return " (at the end of the grid: a wider one may do better)" if len(of) > 1 and chosen in (0, len(of) - 1) else ""
