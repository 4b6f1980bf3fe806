"""Distance between the two sets of weights of each specialized module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.metrics.base import Metric, Row, Subject, make_row
from tokenlens.reduction.summaries import BatchSummary
from tokenlens.specialization import get_plan


def weight_distance(cls: Tensor, patch: Tensor) -> tuple[float, float]:
    """Compute ‖w_cls − w_patch‖ / √((‖w_cls‖² + ‖w_patch‖²)/2), in [0, 2], and the cosine of the two.

    The distance of two sets of zeros (biases before the first step) is 0, their cosine NaN.
    """
    one, two = cls.detach().double().flatten(), patch.detach().double().flatten()
    scale = torch.sqrt((one.square().sum() + two.square().sum()) / 2)
    distance = float((one - two).norm() / scale) if scale > 0 else 0.0
    return distance, float(one @ two / (one.norm() * two.norm()))


@dataclass(frozen=True)
class SpecializedParameter:
    """A parameter that a model has twice.

    Args:
        component: ``norm``, ``qkv``, …; the class name of a module that ``specialize`` did not make.
        name: name in its block, the same in all blocks; the name in the model outside the blocks.
        block: its block; None outside the blocks.
        cls, patch: values for special tokens and for patches.
    """

    component: str
    name: str
    block: int | None
    cls: Tensor
    patch: Tensor


def specialized_parameters(model: nn.Module) -> Iterator[SpecializedParameter]:
    """Yield every parameter that exists twice: those of modules with children called ``cls`` and ``patch``."""
    plan = get_plan(model)
    planned = {} if plan is None else {module.path: module for module in plan.modules}
    for path, module in model.named_modules():
        sides = dict(module.named_children())
        if not {"cls", "patch"} <= sides.keys():
            continue
        if path in planned:
            component, block, inside = planned[path].component, planned[path].block, planned[path].path_in_block
        else:
            component = type(sides["patch"]).__name__
            block, inside = _in_block(path)
        patch = dict(sides["patch"].named_parameters())
        for name, value in sides["cls"].named_parameters():
            if name in patch and patch[name].shape == value.shape:
                yield SpecializedParameter(component, f"{inside}.{name}", block, value, patch[name])


def _in_block(path: str) -> tuple[int | None, str]:
    """Split a path like ``blocks.3.norm1`` into the block and the rest, for a model without a plan.

    >>> _in_block("blocks.3.norm1"), _in_block("norm")
    ((3, 'norm1'), (None, 'norm'))
    """
    parts = path.split(".")
    first = next((index for index, part in enumerate(parts[:-1]) if part.isdigit()), None)
    return (None, path) if first is None else (int(parts[first]), ".".join(parts[first + 1 :]))


class WeightDistance(Metric):
    """Distance between the parameters for special tokens and those for patches, of specialized models only.

    Formula: for each parameter w of each specialized module; exact, so without spread; ``n`` counts its elements.
    Parts:
        relative_distance: ‖w_cls − w_patch‖ / √((‖w_cls‖² + ‖w_patch‖²)/2), in [0, 2]: 0 where both are equal, √2 at
            right angles.
        cosine: cos(w_cls, w_patch), in [−1, 1]; undefined for two sets of zeros.
    Reference: Marouani et al. 2026 (arXiv 2602.08626) on layer specialization.
    Pitfalls: ``site`` is component and name of the parameter, e.g. ``norm/norm1.weight``. At one learning rate small
        parameters change relatively more than large ones: compare a parameter with itself in other blocks and runs.
    Tested against: NumPy on the model's parameters.
    """

    title = "distance between the two sets of weights"
    unit = {"relative_distance": "relative distance", "cosine": "cosine"}  # noqa: RUF012

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def prepare(self, subject: Subject) -> str | None:
        """Compute the rows from the model's parameters."""
        for parameter in specialized_parameters(subject.model):
            distance, cosine = weight_distance(parameter.cls, parameter.patch)
            site, n = f"{parameter.component}/{parameter.name}", parameter.cls.numel()
            for part, value in (("relative_distance", distance), ("cosine", cosine)):
                self._rows.append(
                    make_row((part, parameter.block, site, "cls-patch", None), value, n, self.unit_of(part))
                )
        return None if self._rows else "no module of the model is specialized"

    def update(self, batch: BatchSummary) -> None:
        """Do nothing: images do not matter."""

    def merge(self, other: Any) -> None:
        """Do nothing: images do not matter."""

    def rows(self) -> list[Row]:
        """Return two rows per parameter."""
        return self._rows
