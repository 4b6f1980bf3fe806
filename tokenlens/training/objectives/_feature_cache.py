"""Cache the features of a frozen teacher on disk: computed when a sample first comes up, read from then on."""

# Shapes: N rows of a file, B images of a part of a batch, F kept tokens, D channels, H height, W width.

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from tokenlens.storage.files import write_text
from tokenlens.training.objectives._frozen_teacher import FrozenTeacher


class FeatureFile:
    """Rows of float16 numbers in a memory-mapped file, with a checksum per row in a second file; 0 is an empty row.

    A row is written before its checksum and counts only if the checksum is correct. So after a kill or a power cut no
    half-written row is read as valid. Several processes may fill the same file. Empty rows take no space on disk.

    Args:
        folder: holds one folder for each ``key``, named by its hash.
        key: everything that the rows depend on; also written to key.json, for people.
        shape: shape (N, …) of all rows.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        text = json.dumps({**key, "shape": list(shape)}, indent=1, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:20]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shape = shape
        self.row_bytes = 2 * int(np.prod(shape[1:]))
        self._rows, self._checksums = self.folder / "rows.float16", self.folder / "checksums.uint32"
        for file, size in ((self._rows, shape[0] * self.row_bytes), (self._checksums, 4 * shape[0])):
            file.open("ab").close()  # not "wb": another process may have begun to fill it
            os.truncate(file, size)
        write_text(self.folder / "key.json", text + "\n")
        self._mapped = np.memmap(self._rows, np.float16, "r", shape=shape)
        self._mapped_checksums = np.memmap(self._checksums, np.uint32, "r", shape=shape[:1])

    def get(self, row: int) -> np.ndarray | None:
        """Return a row, None if it is empty or damaged."""
        checksum = int(self._mapped_checksums[row])
        values = np.array(self._mapped[row])
        return values if checksum and checksum == zlib.crc32(values.data) else None

    def put(self, row: int, values: np.ndarray) -> None:
        """Write a row; OSError if the disk is full, and the row stays empty."""
        data = np.ascontiguousarray(values, np.float16)
        assert data.shape == self.shape[1:]
        # Not through the memory map: on a full disk a write to it would end the process with SIGBUS.
        for path, offset, written in (
            (self._rows, row * self.row_bytes, data.tobytes()),
            (self._checksums, 4 * row, np.uint32(zlib.crc32(data.data)).tobytes()),
        ):
            with path.open("r+b") as file:
                file.seek(offset)
                file.write(written)


class CachedTeacher:
    """A teacher's features of each training image and its mirror image, in float16.

    Newly computed features are rounded too, and each image passes through the teacher alone and in float32, whatever
    the batches and precision of the training. So the numbers do not depend on what the cache held before.

    It is deliberately no module: the teacher is then neither sharded nor part of the checkpoints, and moves to the
    device only if something is missing.

    Args:
        teacher: the teacher.
        images: number of training images. The file has 4 · images · F · D bytes at most: 1 GB for 10,000 images of 65
            tokens with 384 channels.
        images_sha256: hash that identifies them. Images that change under the same names need a new folder.
        view: description of the crop.
        folder: the folder of all caches.
    """

    def __init__(self, teacher: FrozenTeacher, images: int, images_sha256: str, view: str, *, folder: Path) -> None:
        self.teacher = teacher
        self.folder = folder
        self.images = images
        self.key = {**teacher.identity, "images": images_sha256, "view": view}
        self.file: FeatureFile | None = None
        self.computed = 0
        """Number of samples that this process passed through the teacher."""

    def features(self, images: Tensor, indices: Tensor, flipped: Tensor) -> Tensor:
        """Return features (B, F, D) in float32.

        Args:
            images: (B, 3, H, W), not mirrored.
            indices: numbers (B,) of the training images.
            flipped: which images (B,) to mirror.
        """
        if self.file is None:  # the device is only known now, and another type of device rounds differently
            versions = {"torch": torch.__version__, "timm": timm.__version__, "device": images.device.type}
            self.file = FeatureFile(self.folder, self.key | versions, (2 * self.images, *self.teacher.feature_shape))
        rows = []
        for position, (index, flip) in enumerate(zip(indices.tolist(), flipped.tolist(), strict=True)):
            row = 2 * index + int(flip)
            values = self.file.get(row)
            if values is None:
                image = images[position : position + 1]
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
