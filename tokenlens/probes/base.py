"""What a probe is given and what it gives back."""

# Shapes: N training images, M test images, R ranks (up to 5), F channels of a feature, P patches.

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tokenlens.probes._features import Kind
from tokenlens.probes._result import table_of
from tokenlens.statistics.bootstrap import interval

RANKS = 5
"""Classes that a classifier names for an image, the likeliest first."""


@dataclass(frozen=True)
class Vectors:
    """One feature vector for each image of a split.

    Args:
        features_NF: float32, on the device.
        labels_N: int64, numbers of classes.
        classes: their names.
    """

    features_NF: Tensor
    labels_N: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.features_NF.device


@dataclass(frozen=True)
class Grids:
    """The patch grid of each image of a split, and its mask.

    Args:
        features_NPF: float16 or float32, usually memory-mapped; P patches in row-major order.
        grid: rows and columns.
        mask_of: the mask of image i, (height, width) uint8; 255 is no class.
        names: of the images.
        classes: their names, by number in the masks.
        device: where to compute.
    """

    features_NPF: np.ndarray
    grid: tuple[int, int]
    mask_of: Callable[[int], np.ndarray]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    device: torch.device

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of the test images.

    Args:
        ranked_MR: (M, up to 5) numbers of classes, the likeliest first.
        protocol: how it was trained, in words, by name.
        choices: what was tried on held-out images: (what, accuracy, how many images).
    """

    ranked_MR: np.ndarray
    protocol: dict[str, str]
    choices: list[tuple[str, float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Judgement:
    """What a probe found on the test images; the fields are those of ``ProbeResult``."""

    value: float
    ci_low: float
    ci_high: float
    per_image: pd.DataFrame
    table: pd.DataFrame
    protocol: dict[str, Any]


class Probe(ABC):
    """A head on frozen features. A file of this folder holds one subclass; its file name is its public name."""

    kind: ClassVar[Kind]
    """Whether it is given ``Vectors`` or ``Grids``."""

    unit: ClassVar[str]
    """What its number is a share of."""

    @abstractmethod
    def judge(self, train: Any, test: Any, names: Sequence[str], seed: int) -> Judgement:
        """Train on the one split, measure on the other.

        Args:
            train: ``Vectors`` or ``Grids``.
            test: likewise.
            names: of the test images.
            seed: of everything that is drawn.
        """


class ImageProbe(Probe):
    """A classifier of images: a subclass says what the test images are, the rest is the same for all.

    The number is the top-1 accuracy: the share of test images whose likeliest class is the right one.
    """

    kind = "image"
    unit = "top-1 accuracy"

    @abstractmethod
    def predict(self, train: Vectors, test: Vectors, seed: int) -> Predictions:
        """The likeliest classes of the test images; ``test.labels_N`` is not for looking at."""

    def judge(self, train: Vectors, test: Vectors, names: Sequence[str], seed: int) -> Judgement:
        """Accuracy with its interval."""
        found = self.predict(train, test, seed)
        hits_MR = found.ranked_MR == test.labels_N[:, None]
        best_M, five_M = hits_MR[:, 0], hits_MR.any(1)
        low, high = interval(np.stack([best_M, five_M], 1).astype(float), lambda sums: sums / len(test))
        values = (float(best_M.mean()), float(five_M.mean()))
        rows = [
            {
                "quantity": quantity,
                "value": value,
                "ci_low": low[i],
                "ci_high": high[i],
                "n": len(test),
                "unit": "share",
            }
            for i, (quantity, value) in enumerate(zip(("top-1 accuracy", "top-5 accuracy"), values, strict=True))
            if i == 0 or len(test.classes) > RANKS
        ]
        rows += [
            {"quantity": "accuracy on held-out training images", "of": what, "value": share, "n": n, "unit": "share"}
            for what, share, n in found.choices
        ]
        classes = np.asarray(test.classes, dtype=object)
        per_image = pd.DataFrame(
            {
                "image": list(names),
                "label": classes[test.labels_N],
                "prediction": classes[found.ranked_MR[:, 0]],
                "correct": best_M.astype(int),
                "correct_top5": five_M.astype(int),
            }
        ).astype({"image": "str", "label": "str", "prediction": "str"})
        table = table_of(rows)
        return Judgement(values[0], float(low[0]), float(high[0]), per_image, table, found.protocol)


def package(module: str, distribution: str) -> ModuleType:
    """A module of a package that comes with the extra for training; ValueError with the way to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise ValueError(f"this needs the package {distribution}: pip install 'tokenlens-vit[train]'") from error
