"""Rows of numbers on disk that are filled one by one, and survive a kill."""

# Shapes: N rows of the file.

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class FeatureFile:
    """Rows of float16 numbers in a memory-mapped file, each with its checksum in a second file; 0 is an empty row.

    A row is written before its checksum, and counts only if the checksum is right. So neither a killed process nor a
    machine that went down between the two leaves a half-written row that is taken for good. Several processes may fill
    the same file. Unwritten rows take no room on disk.

    Args:
        folder: holds a folder for each ``key``, named by its hash.
        key: everything that the rows depend on; written beside them for people.
        shape: (N, …) of the rows.
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
        (self.folder / "key.json").write_text(text + "\n", encoding="utf-8")
        self._mapped = np.memmap(self._rows, np.float16, "r", shape=shape)
        self._mapped_checksums = np.memmap(self._checksums, np.uint32, "r", shape=shape[:1])

    def get(self, row: int) -> np.ndarray | None:
        """A row, or None where it is empty or damaged."""
        checksum = int(self._mapped_checksums[row])
        values = np.array(self._mapped[row])
        return values if checksum and checksum == zlib.crc32(values.data) else None

    def put(self, row: int, values: np.ndarray) -> None:
        """Write a row; OSError where the disk is full, and the row stays empty then."""
        data = np.ascontiguousarray(values, np.float16)
        assert data.shape == self.shape[1:]
        # Not through the map: on a full disk a write to it would end the process with SIGBUS.
        for path, place, written in (
            (self._rows, row * self.row_bytes, data.tobytes()),
            (self._checksums, 4 * row, np.uint32(zlib.crc32(data.data)).tobytes()),
        ):
            with path.open("r+b") as file:
                file.seek(place)
                file.write(written)
