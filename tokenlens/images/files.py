"""Images as a source provides them, not yet prepared for a model, and image files in folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

from tokenlens.images.decoding import (
    UnreadableImageError,
    check_enlarged_size,
    decode,
    describe_error,
    image_extensions,
    is_image_name,
)


@dataclass(frozen=True)
class RawImage:
    """One image of a source, not yet prepared for a model.

    Args:
        name: unique in its source.
        content: bytes of an image file, an RGB image, or a preprocessed tensor (3, height, width); None if unreadable.
        reason: why there is no content.
        invalid: whether the input is wrong, not just unreadable: an error then ends the analysis.
    """

    name: str
    content: bytes | Image.Image | Tensor | None = None
    reason: str = ""
    invalid: bool = False

    @classmethod
    def from_file(cls, name: str, path: Path) -> RawImage:
        """Read the bytes of an image file."""
        try:
            return cls(name, path.read_bytes())
        except OSError as error:
            return cls(name, reason=error.strerror or describe_error(error))

    def decode(self, image_size: tuple[int, int] | None = None) -> Image.Image:
        """Return the image as RGB; ``image_size`` is what the model takes.

        Raises:
            UnreadableImageError: if it cannot be read or decoded, or would become too large when resized.
        """
        if self.content is None:
            raise UnreadableImageError(self.reason)
        assert not isinstance(self.content, Tensor)
        image = decode(self.content) if isinstance(self.content, bytes) else self.content
        check_enlarged_size(image, image_size)
        return image


class IndexedImages(Protocol):
    """A source whose images can be read in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> RawImage: ...


class ImageFiles:
    """Image files in a folder, given by their paths relative to it."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> RawImage:
        name = self.names[index]
        return RawImage.from_file(printable_name(name), self.folder / name)


def find_images(folder: Path) -> list[str]:
    """Return the paths of all image files below a folder, relative to it, sorted.

    Hidden files and folders are left out. Links to folders are followed, each folder once.

    Raises:
        ValueError: if there are no images; the message names the extensions looked for.
    """
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = "" if parent == os.fspath(folder) else Path(parent).relative_to(folder).as_posix() + "/"
        found += [prefix + name for name in files if not name.startswith(".") and is_image_name(name)]
    if not found:
        expected = " ".join(sorted(image_extensions()))
        raise ValueError(f"no images in {folder} or its subfolders; expected files that end in {expected}")
    return sorted(found)


def printable_name(name: str) -> str:
    """Return a file name as valid Unicode: bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def preview_names(names: Sequence[str]) -> str:
    """Return the first five names as text for an error message."""
    first = ", ".join(printable_name(name) for name in names[:5])
    return f"{first} … ({len(names)} in total)" if len(names) > 5 else first or "none"
