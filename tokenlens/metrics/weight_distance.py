"""How far the two sets of weights of a specialized module have moved apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.metrics.base import Metric, Row, Subject, row
from tokenlens.reduction.batch import BatchSummary
from tokenlens.specialization import plan_of


def weight_distance(cls: Tensor, patch: Tensor) -> tuple[float, float]:
    """‖w_cls − w_patch‖ / sqrt((‖w_cls‖² + ‖w_patch‖²)/2), in [0, 2], and the cosine of the two.

    The distance of two sets of zeros (biases before the first step) is 0, their cosine NaN.
    """
    one, two = cls.detach().double().flatten(), patch.detach().double().flatten()
    scale = torch.sqrt((one.square().sum() + two.square().sum()) / 2)
    distance = float((one - two).norm() / scale) if scale > 0 else 0.0
    return distance, float(one @ two / (one.norm() * two.norm()))


@dataclass(frozen=True)
class SpecializedParameter:
    """A parameter that a model holds twice.

    Args:
        component: what it belongs to (``norm``, ``qkv``, …); for a module that ``specialize`` did not make its class.
        name: inside its block, the same in all blocks; of the final norm the name in the model.
        block: number of its block; None outside of the blocks.
        cls, patch: the values for prefix tokens and for patches.
    """

    component: str
    name: str
    block: int | None
    cls: Tensor
    patch: Tensor


def specialized_parameters(model: nn.Module) -> Iterator[SpecializedParameter]:
    """Every parameter held twice: of modules with children called ``cls`` and ``patch``."""
    plan = plan_of(model)
    planned = {} if plan is None else {replacement.path: replacement for replacement in plan.replacements}
    for path, module in model.named_modules():
        sides = dict(module.named_children())
        if not {"cls", "patch"} <= sides.keys():
            continue
        if path in planned:
            component, block, inside = planned[path].component, planned[path].block, planned[path].inside
        else:
            component = type(sides["patch"]).__name__
            block, inside = _in_block(path)
        patch = dict(sides["patch"].named_parameters())
        for name, value in sides["cls"].named_parameters():
            if name in patch and patch[name].shape == value.shape:
                yield SpecializedParameter(component, f"{inside}.{name}", block, value, patch[name])


def _in_block(path: str) -> tuple[int | None, str]:
    """The block and the rest of a path like ``blocks.3.norm1``, where nobody says which modules are the blocks.

    >>> _in_block("blocks.3.norm1"), _in_block("norm")
    ((3, 'norm1'), (None, 'norm'))
    """
    words = path.split(".")
    first = next((index for index, word in enumerate(words[:-1]) if word.isdigit()), None)
    return (None, path) if first is None else (int(words[first]), ".".join(words[first + 1 :]))


class WeightDistance(Metric):
    """Of every parameter of every specialized module; exact, so without spread, and n counts its elements.

    The site is the component and the parameter's name inside its block: ``norm/norm1.weight``.
    """

    title = "distance of the two sets of weights"
    unit = "relative distance"

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def prepare(self, subject: Subject) -> str | None:
        """Read the parameters."""
        for parameter in specialized_parameters(subject.model):
            distance, cosine = weight_distance(parameter.cls, parameter.patch)
            site, n = f"{parameter.component}/{parameter.name}", parameter.cls.numel()
            for part, value, unit in (("relative_distance", distance, self.unit), ("cosine", cosine, "cosine")):
                self._rows.append(row(part, parameter.block, site, "cls-patch", value=value, n=n, unit=unit))
        return None if self._rows else "no module of the model is specialized"

    def update(self, batch: BatchSummary) -> None:
        """Images do not matter."""

    def merge(self, other: Any) -> None:
        """Images do not matter."""

    def rows(self) -> list[Row]:
        """Two rows for each parameter."""
        return self._rows
