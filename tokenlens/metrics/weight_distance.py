"""How far the two sets of weights of a specialized module have moved apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.cells import BatchSummary
from tokenlens.metrics import Metric, Row, Subject, row


def weight_distance(cls: Tensor, patch: Tensor) -> tuple[float, float]:
    """‖w_cls − w_patch‖ / sqrt((‖w_cls‖² + ‖w_patch‖²)/2), in [0, 2], and the cosine of the two.

    The distance of two sets of zeros (biases before the first step) is 0, their cosine NaN.
    """
    one, two = cls.detach().double().flatten(), patch.detach().double().flatten()
    scale = torch.sqrt((one.square().sum() + two.square().sum()) / 2)
    distance = float((one - two).norm() / scale) if scale > 0 else 0.0
    return distance, float(one @ two / (one.norm() * two.norm()))


def specialized_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name and both tensors of every parameter held twice: modules with children called ``cls`` and ``patch``."""
    for name, module in model.named_modules():
        sides = dict(module.named_children())
        if {"cls", "patch"} <= sides.keys():
            patch = dict(sides["patch"].named_parameters())
            for parameter, value in sides["cls"].named_parameters():
                if parameter in patch and patch[parameter].shape == value.shape:
                    yield f"{name}.{parameter}", value, patch[parameter]


class WeightDistance(Metric):
    """Of every parameter of every specialized module; exact, so without spread, and n counts its elements."""

    title = "distance of the two sets of weights"
    unit = "relative distance"

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def prepare(self, subject: Subject) -> str | None:
        """Read the parameters."""
        for name, cls, patch in specialized_parameters(subject.model):
            block = next((int(word) for word in name.split(".") if word.isdigit()), None)
            distance, cosine = weight_distance(cls, patch)
            for part, value, unit in (("relative_distance", distance, self.unit), ("cosine", cosine, "cosine")):
                self._rows.append(
                    row(part, block, name, "cls-patch", value=value, n=cls.numel(), unit=unit)
                )
        return None if self._rows else "no module of the model is specialized"

    def update(self, batch: BatchSummary) -> None:
        """Images do not matter."""

    def merge(self, other: Any) -> None:
        """Images do not matter."""

    def rows(self) -> list[Row]:
        """Two rows for each parameter."""
        return self._rows
