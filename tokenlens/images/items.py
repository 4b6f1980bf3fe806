"""Images as they come out of a source, before the model's transform: encoded, decoded or already a tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from tokenlens.images.decoding import to_rgb, unreadable_reason
from tokenlens.images.sample import view, view_name

UNREADABLE = (OSError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What PIL and torchvision raise for a broken image. Anything else that a data set raises is its own bug."""


@dataclass(frozen=True)
class Record:
    """One image of a source.

    Args:
        name: unique in its source.
        content: bytes of an image file, an image, or a preprocessed tensor (3, height, width); None if unreadable.
        reason: why it is unreadable.
        refused: whether this is not an unreadable image but a wrong input, which stops the analysis.
    """

    name: str
    content: bytes | Image.Image | Tensor | None = None
    reason: str = ""
    refused: bool = False

    @classmethod
    def of_file(cls, name: str, path: Path) -> Record:
        """The bytes of a file."""
        try:
            return cls(name, path.read_bytes())
        except OSError as error:
            return cls(name, reason=error.strerror or unreadable_reason(error))


class Records(Protocol):
    """A source whose images can be taken in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Record: ...


class FileRecords:
    """Image files, named by their path relative to a folder."""

    def __init__(self, paths: Sequence[Path], folder: Path) -> None:
        self.paths = list(paths)
        self.folder = folder

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Record:
        path = self.paths[position]
        return Record.of_file(printable(path.relative_to(self.folder).as_posix()), path)


class SampleRecords:
    """Views of the sample set."""

    def __init__(self, views: int, seed: int) -> None:
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        return self.views

    def __getitem__(self, position: int) -> Record:
        return Record(view_name(position), view(position, self.seed))


class TensorRecords:
    """The rows of a tensor (N, 3, H, W)."""

    def __init__(self, images_N3HW: Tensor) -> None:
        self.images_N3HW = images_N3HW

    def __len__(self) -> int:
        return len(self.images_N3HW)

    def __getitem__(self, position: int) -> Record:
        return Record(f"image {position}", self.images_N3HW[position])


class DatasetRecords:
    """The items of somebody's data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Record:
        name = item_name(self.dataset, position)
        try:
            item = self.dataset[position]
        except UNREADABLE as error:
            return Record(name, reason=unreadable_reason(error))
        return record_of_item(name, item)


class ItemStream:
    """The items of somebody's iterable data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Any:
        for position, item in enumerate(self.dataset):
            yield record_of_item(f"item {position}", item)


def record_of_item(name: str, item: Any) -> Record:
    """An item of a data set as a record; refused if it holds no image."""
    content = image_of(item)
    if isinstance(content, Image.Image):
        try:
            return Record(name, to_rgb(content))
        except (*UNREADABLE, ValueError) as error:
            return Record(name, reason=unreadable_reason(error))
    if isinstance(content, Tensor):
        return Record(name, content)
    reason = (
        f"{name} of the data set is of type {type(content).__qualname__}; expected a PIL image, a tensor (3, height, "
        "width), a tuple (image, label), or a dict with 'image' or 'pixel_values'"
    )
    return Record(name, reason=reason, refused=True)


def image_of(item: Any) -> Any:
    """The image in a (image, label) tuple or in a dict with 'pixel_values' or 'image'; anything else as it is."""
    if isinstance(item, Mapping):
        return item.get("pixel_values", item.get("image", item))
    return item[0] if isinstance(item, tuple | list) and item else item


def item_name(dataset: Any, position: int) -> str:
    """File name of a torchvision folder's item, relative to its root; otherwise the position."""
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, list) and len(samples) == len(dataset) and isinstance(samples[position], tuple):
        path = samples[position][0]
        if isinstance(path, str | os.PathLike):
            root = getattr(dataset, "root", None)
            return printable(os.path.relpath(path, root) if root else os.fspath(path))
    return f"item {position}"


def printable(name: str) -> str:
    """A file name that can be written as UTF-8: bytes that are not become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
