"""Features of a frozen teacher on disk: computed when a sample first comes up, read from then on."""

# Shapes: B images of a part of a batch, F kept tokens, D channels, H height, W width.

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor

from tokenlens.training.objectives._feature_file import FeatureFile
from tokenlens.training.objectives._frozen_teacher import FrozenTeacher


class CachedTeacher:
    """A teacher's features of each training image and its mirror image, always as float16.

    Also what was just computed is rounded, and each image goes through the teacher alone and in float32, whatever the
    training's batches and precision: so the numbers are the same whether the file was full, empty or half full.

    It is no module on purpose: the teacher then is neither sharded nor part of the checkpoints, and is on the device
    only once something is missing.

    Args:
        teacher: see there.
        folder: of all caches.
        images: how many training images there are. The file has 4 · images · F · D bytes at most: 1 GB for 10,000
            images of 65 tokens with 384 channels.
        images_sha256: which ones. Images that are changed under the same names need a new folder.
        view: how an image is cut.
    """

    def __init__(self, teacher: FrozenTeacher, folder: Path, images: int, images_sha256: str, view: str) -> None:
        self.teacher = teacher
        self.folder = folder
        self.images = images
        self.key = {**teacher.identity, "images": images_sha256, "view": view}
        self.file: FeatureFile | None = None
        self.computed = 0
        """How many samples went through the teacher in this process."""

    def features(self, images: Tensor, indices: Tensor, flipped: Tensor) -> Tensor:
        """Of images (B, 3, H, W), those mirrored where ``flipped`` (B,) says so; (B, F, D) float32.

        Args:
            indices: (B,) which training images these are.
        """
        if self.file is None:  # only now the device is known, and another kind of device rounds differently
            versions = {"torch": torch.__version__, "timm": timm.__version__, "device": images.device.type}
            self.file = FeatureFile(self.folder, self.key | versions, (2 * self.images, *self.teacher.feature_shape))
        rows = []
        for place, (index, flip) in enumerate(zip(indices.tolist(), flipped.tolist(), strict=True)):
            row = 2 * index + int(flip)
            values = self.file.get(row)
            if values is None:
                image = images[place : place + 1]
                values = self._compute(image.flip(-1) if flip else image)
                self.file.put(row, values)
            rows.append(values)
        return torch.from_numpy(np.stack(rows)).to(images.device).float()

    def _compute(self, image: Tensor) -> np.ndarray:
        with torch.autocast(image.device.type, enabled=False):
            features_BFD = self.teacher.to(image.device)(image.float())
        self.computed += 1
        values: np.ndarray = features_BFD[0].half().cpu().numpy()
        return values
