"""The contract of a probe: the features that it receives, the head that it fits, and the score that it returns."""

# Shapes: N training images, M test images, R ranks (up to 5), F channels of a feature, P patches, S numbers that are
# summed over images, X sums.

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

from tokenlens.catalog import Catalog
from tokenlens.probes._features import FeatureKind
from tokenlens.probes._result import make_table
from tokenlens.statistics.bootstrap import bootstrap_interval

probes = Catalog("tokenlens.probes", "probe", base="Probe")

Progress = Callable[[str, int, int, str], None]
"""Called with the stage of a probe, how much is done of how much, and the unit."""

RANKS = 5
"""Number of classes that a classifier ranks for each image."""


@dataclass(frozen=True)
class ImageFeatures:
    """One feature vector and label per image of a split.

    Args:
        features_NF: float32, on the device to compute on.
        labels_N: int64, class numbers.
        classes: class names.
    """

    features_NF: Tensor
    labels_N: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def device(self) -> torch.device:
        """The device of the features."""
        return self.features_NF.device


@dataclass(frozen=True)
class PatchFeatures:
    """The features of every patch, and the mask, of each image of a split.

    Args:
        features_NPF: float16 or float32, usually memory-mapped; P patches in row-major order.
        grid: rows and columns of patches.
        mask_of: returns the mask of image i, (height, width) uint8; 255 is no class.
        names: image names.
        classes: class names, by their number in the masks.
        device: the device to compute on.
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
class FittedHead:
    """A head after training.

    Args:
        tensors: everything besides the features that its predictions depend on; kept in the run folder.
        protocol: how it was trained, as name and text.
        choices: settings that were tried on held-out images: (setting, score, number of images).
    """

    tensors: dict[str, Tensor]
    protocol: dict[str, str] = field(default_factory=dict)
    choices: list[tuple[str, float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class ProbeScore:
    """The score of a probe on the test images; the fields are those of ``ProbeResult``."""

    value: float
    ci_low: float
    ci_high: float
    per_image: pd.DataFrame
    table: pd.DataFrame
    protocol: dict[str, Any]


class Probe(ABC):
    """A head on frozen features. Each file of this folder defines one subclass; the file name is its public name.

    Args:
        progress: called while a head is trained or tested; see ``Progress``.
    """

    kind: ClassVar[FeatureKind]
    """``"image"`` to receive ``ImageFeatures``, ``"patches"`` to receive ``PatchFeatures``."""

    unit: ClassVar[str]
    """Unit of the score: the quantity that it is a share of."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress

    @abstractmethod
    def fit(self, train: Any, seed: int) -> FittedHead:
        """Train a head; ``train`` are ``ImageFeatures`` or ``PatchFeatures``, ``seed`` seeds every random draw."""

    @abstractmethod
    def score(self, head: FittedHead, test: Any, names: Sequence[str]) -> ProbeScore:
        """Score a head on other images, with these names, without changing it."""

    @abstractmethod
    def count(self, head: FittedHead, test: Any) -> np.ndarray:
        """Return the numbers per image whose sums over images give the score, (M, S) float64."""

    @abstractmethod
    def measure(self, sums_XS: np.ndarray) -> np.ndarray:
        """Compute the score, (X,), from sums over images of what ``count`` returns."""


class ImageProbe(Probe):
    """A classifier of images, scored by its top-1 accuracy. A subclass fits a head and ranks classes with it."""

    kind = "image"
    unit = "top-1 accuracy"

    @abstractmethod
    def rank(self, head: FittedHead, features_MF: Tensor, classes: int) -> np.ndarray:
        """Rank the classes of images, the likeliest first: (M, up to 5) class numbers."""

    def count(self, head: FittedHead, test: ImageFeatures) -> np.ndarray:
        """Return whether the first class is right, and 1, for each image."""
        ranked_MR = self.rank(head, test.features_NF, len(test.classes))
        hits_M = (ranked_MR[:, 0] == test.labels_N).astype(np.float64)
        return np.stack([hits_M, np.ones_like(hits_M)], axis=1)

    def measure(self, sums_XS: np.ndarray) -> np.ndarray:
        """Compute the accuracy."""
        accuracy_X: np.ndarray = sums_XS[:, 0] / sums_XS[:, 1]
        return accuracy_X

    def score(self, head: FittedHead, test: ImageFeatures, names: Sequence[str]) -> ProbeScore:
        """Compute the accuracy with its interval over test images."""
        ranked_MR = self.rank(head, test.features_NF, len(test.classes))
        hits_MR = ranked_MR == test.labels_N[:, None]
        top1_M, top5_M = hits_MR[:, 0], hits_MR.any(1)
        low, high = bootstrap_interval(np.stack([top1_M, top5_M], 1).astype(float), lambda sums: sums / len(test))
        values = (float(top1_M.mean()), float(top5_M.mean()))
        n = len(test)
        rows = [
            {"quantity": name, "value": values[i], "ci_low": low[i], "ci_high": high[i], "n": n, "unit": "share"}
            for i, name in enumerate(("top-1 accuracy", "top-5 accuracy"))
            if i == 0 or len(test.classes) > RANKS
        ]
        rows += [
            {"quantity": "accuracy on held-out training images", "of": setting, "value": value, "n": n, "unit": "share"}
            for setting, value, n in head.choices
        ]
        classes = np.asarray(test.classes, dtype=object)
        per_image = pd.DataFrame(
            {
                "image": list(names),
                "label": classes[test.labels_N],
                "prediction": classes[ranked_MR[:, 0]],
                "correct": top1_M.astype(int),
                "correct_top5": top5_M.astype(int),
            }
        ).astype({"image": "str", "label": "str", "prediction": "str"})
        table = make_table(rows)
        return ProbeScore(values[0], float(low[0]), float(high[0]), per_image, table, head.protocol)


def import_extra(module: str, distribution: str) -> ModuleType:
    """Import a module that comes with the optional dependencies for training.

    Raises:
        ValueError: if it is not installed, with the command to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise ValueError(f"this needs the package {distribution}: pip install 'tokenlens-vit[train]'") from error
