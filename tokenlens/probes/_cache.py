"""The on-disk cache of features, under a key of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from tokenlens.images.decoding import pixel_sha256
from tokenlens.storage.cache import cache_folder
from tokenlens.storage.files import write_json
from tokenlens.storage.run_folder import check_manifest, writing

FORMAT = 2
"""Version of the files; features of another version are computed again."""

CHECKED_IMAGES = 16
"""Images that are decoded and compared before cached features are used: a file's name does not show its changes."""

_INDEX = "index.json"


class FeatureCache:
    """The cached features of some images of a split.

    Args:
        identity: everything about the backbone that determines its features.
        kind: the kind of features.
        description: the description of the split.
        indices: (N,) numbers of the images in the split.
        data_path: the absolute path of the data.
    """

    def __init__(
        self, identity: dict[str, Any], kind: str, description: dict[str, Any], indices: np.ndarray, data_path: str
    ) -> None:
        key = {
            "format": FORMAT,
            "kind": kind,
            "backbone": identity,
            "data": description,
            "data_path": data_path,
            "indices": hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest(),
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:40]
        self.folder = cache_folder("features") / digest
        self.identity, self.description, self.count = identity, description, len(indices)

    def read(self, pixels: Callable[[int], Image.Image]) -> dict[str, Any] | None:
        """Return the index of the cached features; None if there are none, or they are damaged or outdated.

        Args:
            pixels: returns the image at a position, to compare it with the one that was cached.
        """
        try:
            check_manifest(self.folder, [_INDEX])
            index: dict[str, Any] = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))
            self._map(index["arrays"])
            for position, digest in index["hashes"].items():
                if pixel_sha256(pixels(int(position))) != digest:
                    return None
        except (OSError, ValueError, KeyError):
            return None
        return index

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the cached features, memory-mapped."""
        return self._map(json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))["arrays"])

    def _map(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in names}

    @contextmanager
    def writing(self) -> Iterator[tuple[Callable[..., np.ndarray], Callable[..., None]]]:
        """Replace the cached features, whole or not at all.

        Yields:
            A function that allocates a memory-mapped array, and one that writes the index from the skipped images,
            which images are readable, and their hashes.
        """
        shutil.rmtree(self.folder, ignore_errors=True)  # damaged or outdated; the key is ours
        try:
            with writing(self.folder) as unfinished:
                arrays: dict[str, np.memmap] = {}

                def allocate(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
                    file = unfinished / f"{name}.npy"
                    arrays[name] = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
                    return arrays[name]

                def write_index(skipped: list[dict[str, str]], readable: np.ndarray, hashes: Sequence[str]) -> None:
                    for array in arrays.values():
                        array.flush()
                    checked = np.unique(np.linspace(0, self.count - 1, CHECKED_IMAGES).astype(int)).tolist()
                    index = {
                        "format": FORMAT,
                        "arrays": sorted(arrays),
                        "skipped": skipped,
                        "unreadable": np.flatnonzero(~readable).tolist(),
                        "hashes": {str(i): hashes[i] for i in checked if readable[i]},
                        "identity": self.identity,
                        "data": self.description,
                    }
                    write_json(unfinished / _INDEX, index)

                yield allocate, write_index
        except OSError as error:
            if error.filename is None:
                error.filename = str(self.folder.parent)
            raise
