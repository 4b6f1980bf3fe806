"""Images as a source provides them, not yet prepared for a model, and image files in folders."""

from __future__ import annotations

import os
import stat
from collections import Counter
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
from tokenlens.storage.wording import counted

_OTHERS = (
    ".heic .heif .hif .avif .jxl .svg .exr .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .psd .nii .npy .npz .mat "
    ".mp4 .mov .avi .mkv .webm"
)
OTHER_FORMATS = frozenset(_OTHERS.split())
"""Extensions of pictures, arrays and videos. Those that the installed PIL can read are images."""


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
            # Opening a pipe that nobody writes to would block, and a device may never end.
            with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return cls(name, reason="a pipe or a device, not a file")
                return cls(name, file.read())
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
    """Image files in a folder, given by their paths relative to it; ``notes`` says which files were left out."""

    def __init__(self, folder: Path, names: Sequence[str], notes: Sequence[str] = ()) -> None:
        self.folder = folder
        self.names = names
        self.notes = notes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> RawImage:
        name = self.names[index]
        return RawImage.from_file(printable_name(name), self.folder / name)


def find_images(folder: Path) -> ImageFiles:
    """Find all image files below a folder, sorted by their relative paths.

    Hidden files and folders are left out. Links to folders are followed, each folder once. Pictures and videos in other
    formats (``OTHER_FORMATS``) are counted in ``notes``.

    Raises:
        ValueError: if there are no images; the message names the extensions looked for.
    """
    found: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = "" if parent == os.fspath(folder) else Path(parent).relative_to(folder).as_posix() + "/"
        visible = [prefix + name for name in files if not name.startswith(".")]
        found += [name for name in visible if is_image_name(name)]
        others += [name for name in visible if is_other_format(name)]
    note = describe_other_formats(others)
    if not found:
        expected = " ".join(sorted(image_extensions()))
        hint = f" ({note})" if note else ""
        raise ValueError(f"no images in {folder} or its subfolders{hint}; expected files that end in {expected}")
    return ImageFiles(folder, sorted(found), [note] if note else [])


def is_other_format(name: str) -> bool:
    """Return whether a file name has the extension of a picture or video that PIL does not read."""
    return os.path.splitext(name)[1].lower() in OTHER_FORMATS and not is_image_name(name)


def describe_other_formats(names: Sequence[str]) -> str:
    """Return a sentence about files in formats that are not read, or nothing if there are none."""
    if not names:
        return ""
    kinds = Counter(os.path.splitext(name)[1].lower() for name in names).most_common()
    were = "was" if len(names) == 1 else "were"
    return (
        f"{counted(len(names), 'file')} in formats that are not read {were} left out "
        f"({', '.join(f'{count} {kind}' for kind, count in kinds)}), e.g. {printable_name(min(names))}; convert "
        "them to JPEG or PNG"
    )


def base_name(name: str) -> str:
    """Return the last part of an image's name, whichever separator its source uses.

    >>> base_name("cats/one.jpg"), base_name(r"cats\\two.jpg")
    ('one.jpg', 'two.jpg')
    """
    return name.replace("\\", "/").rpartition("/")[2]


def printable_name(name: str) -> str:
    """Return a file name as valid Unicode: bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def preview_names(names: Sequence[str]) -> str:
    """Return the first five names as text for an error message."""
    first = ", ".join(printable_name(name) for name in names[:5])
    return f"{first} … ({len(names)} in total)" if len(names) > 5 else first or "none"
