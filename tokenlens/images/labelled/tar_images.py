"""Images in tar archives, read in any order."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tokenlens.images.files import RawImage, printable_name
from tokenlens.images.labelled.tar_index import TarIndex
from tokenlens.images.packed_strings import PackedStrings


class TarImages:
    """Images of tar archives, undecoded.

    Args:
        paths: of the archives.
        indices: of the archives, one each.
        prefix_names: whether an image's name begins with the name of its archive.

    Attributes:
        notes: which archives are broken, as sentences.
    """

    def __init__(self, paths: Sequence[Path], indices: Sequence[TarIndex], prefix_names: bool) -> None:
        self.paths = list(paths)
        self.names = PackedStrings(
            f"{path.name}/{name}" if prefix_names else name
            for path, index in zip(paths, indices, strict=True)
            for name in index.names
        )
        self.archives = np.repeat(np.arange(len(indices)), [len(index.names) for index in indices])
        self.offsets = np.concatenate([index.offsets for index in indices])
        self.sizes = np.concatenate([index.sizes for index in indices])
        self.labels = np.concatenate([index.labels for index in indices])
        self.notes = [f"{path}: {index.problem}" for path, index in zip(paths, indices, strict=True) if index.problem]
        self._open_files = OpenFiles()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> RawImage:
        name = printable_name(self.names[index])
        size = int(self.sizes[index])
        if size < 0:
            return RawImage(name, reason="no image in this sample")
        try:
            content = self._open_files.read(self.paths[self.archives[index]], int(self.offsets[index]), size)
        except OSError as error:
            return RawImage(name, reason=error.strerror or str(error))
        if len(content) < size:
            return RawImage(name, reason="the archive ends before this image")
        return RawImage(name, content)


class OpenFiles:
    """Files that stay open while parts of them are read in any order, at most ``LIMIT`` at a time.

    Each process opens its own: descriptors are neither pickled nor used after a fork.
    """

    LIMIT = 64  # a process may usually have 1024 open files, and data sets have thousands of shards

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._descriptors: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset``; fewer where the file ends.

        Raises:
            OSError: if the file cannot be read.
        """
        if self._process != os.getpid():
            self._reset()
        if path in self._descriptors:
            self._descriptors.move_to_end(path)
        else:
            self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._descriptors) > self.LIMIT:
                os.close(self._descriptors.popitem(last=False)[1])
        return os.pread(self._descriptors[path], size, offset)

    def close(self) -> None:
        """Close the files that this process opened."""
        if self._process == os.getpid():
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()
