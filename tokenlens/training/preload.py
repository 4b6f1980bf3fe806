"""Decode the training images once and keep their views on the device, for views that do not depend on chance.

A small model on a GPU takes longer to be fed than to be trained. The views of the last data set stay in memory, so the
next training of the same process finds them.
"""

# Shapes: N images, B of one part of a step, C channels, H height, W width.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tokenlens.training.batches import Batches, BatchOrder, TrainingSamples, collate, raise_errors
from tokenlens.training.objectives.base import TrainingBatch, Views

BATCH = 256
"""Images that are decoded, and sampled, together."""


@dataclass
class PreloadedImages:
    """The views of all training images on one device.

    Attributes:
        views: V tensors (N, C, H, W) float32.
        labels: class numbers (N,), or None.
        skipped: ``{"name", "reason"}`` of the images that could not be read; the next one stands in for each.
    """

    views: list[Tensor] = field(default_factory=list)
    labels: Tensor | None = None
    skipped: list[dict[str, str]] = field(default_factory=list)

    def batch(self, indices_B: np.ndarray, positions_B: np.ndarray, size: int) -> TrainingBatch:
        """Return the batch of some images."""
        chosen = torch.from_numpy(indices_B).to(self.views[0].device)
        labels = None if self.labels is None else self.labels[chosen]
        views = [view[chosen] for view in self.views]
        return TrainingBatch(views, labels, torch.from_numpy(indices_B), torch.from_numpy(positions_B), size)

    def sample(self, count: int) -> Iterator[TrainingBatch]:
        """Yield batches of at most ``count`` images, spread evenly over all of them."""
        total = len(self.views[0])
        chosen = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))
        for first in range(0, len(chosen), BATCH):
            indices = chosen[first : first + BATCH]
            yield self.batch(indices, np.arange(len(indices)), len(indices))

    def batches(self, order: BatchOrder) -> Batches:
        """Yield the batches of an order; what could not be read is listed with the first one."""
        skipped = self.skipped
        for keys in order:
            _, indices, positions = np.array(keys).T
            yield self.batch(indices, positions, order.batch_size), skipped
            skipped = []


_kept: dict[Any, PreloadedImages] = {}


def preload(images: Any, views: Views, device: torch.device, workers: int = 0) -> PreloadedImages:
    """Decode all images, or return those of the last call if it had the same images, views and device.

    Args:
        images: opened by ``tokenlens.images.labelled.classes.open_labelled``.
        views: the augmentation, which must not draw anything.
        device: where to keep the views.
        workers: processes that decode.

    Raises:
        ValueError: if no image at all can be read.
    """
    key = (images.description["sha256"], views, device)
    if key not in _kept:
        _kept.clear()
        order = [
            [(0, index, 0) for index in range(first, min(first + BATCH, len(images)))]
            for first in range(0, len(images), BATCH)
        ]
        make: Callable[..., Any] = partial(collate, size=BATCH)
        samples = TrainingSamples(images, views, 0)
        loader: DataLoader[Any] = DataLoader(
            samples, batch_sampler=order, collate_fn=make, num_workers=workers, generator=torch.Generator()
        )
        parts, loaded = [], PreloadedImages()
        for batch, skipped in raise_errors(loader):
            parts.append(batch.to(device))
            loaded.skipped += skipped
        loaded.views = [torch.cat(view) for view in zip(*(part.views for part in parts), strict=True)]
        labels = [part.labels for part in parts if part.labels is not None]
        loaded.labels = torch.cat(labels) if len(labels) == len(parts) else None
        _kept[key] = loaded
    return _kept[key]
