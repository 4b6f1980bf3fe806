"""Keep the features of a frozen teacher in the device's memory."""

# Shapes: N rows, B images, F kept tokens, D channels, H height, W width.

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tokenlens.training.objectives._frozen_teacher import FrozenTeacher
from tokenlens.training.objectives.base import TrainingBatch

_kept: dict[Any, Tensor] = {}
"""The features of the last teacher and images, for the next training of this process."""


class DeviceTeacher:
    """A teacher's features of each training image and its mirror image, in float16, on the device.

    All of them are computed before training, in fixed batches and in float32, so they do not depend on the order of
    training. They take 4 · images · F · D bytes: 2 GB for 20,000 images of 65 tokens with 384 channels. It is
    deliberately no module: the teacher is then not part of the checkpoints.

    Args:
        teacher: the teacher.
        images: number of training images.
        images_sha256: hash that identifies them.
        view: description of the crop.
    """

    def __init__(self, teacher: FrozenTeacher, images: int, images_sha256: str, view: str) -> None:
        self.teacher = teacher
        self.images = images
        self.key = (*map(str, teacher.identity.values()), images_sha256, view)

    def fill(self, batches: Iterable[TrainingBatch], device: torch.device) -> None:
        """Compute the features of all images, unless an earlier training of this process did."""
        if (*self.key, device) in _kept:
            return
        _kept.clear()
        table = torch.empty((2 * self.images, *self.teacher.feature_shape), dtype=torch.float16, device=device)
        teacher = self.teacher.to(device)
        with torch.autocast(device.type, enabled=False):
            for batch in batches:
                images_BCHW = batch.views[-1].to(device)
                rows = 2 * batch.indices.to(device)
                table[rows] = teacher(images_BCHW).half()
                table[rows + 1] = teacher(images_BCHW.flip(-1)).half()
        _kept[(*self.key, device)] = table

    def features(self, images: Tensor, indices: Tensor, flipped: Tensor) -> Tensor:
        """Return features (B, F, D) in float32.

        Args:
            images: (B, 3, H, W); only their device matters.
            indices: numbers (B,) of the training images.
            flipped: which images (B,) to mirror.
        """
        rows = 2 * indices.to(images.device) + flipped.to(images.device)
        return _kept[(*self.key, images.device)][rows].float()
