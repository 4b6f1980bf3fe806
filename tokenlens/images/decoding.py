"""Image files: which ones there are in a folder, and their bytes as RGB."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

LEFT_OUT = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""What PIL opens but is no raster image, or needs another program: PIL hands EPS files to Ghostscript."""


class UnreadableImageError(ValueError):
    """An image that cannot be decoded; the message is the reason, fit for a report."""


@lru_cache(maxsize=1)
def image_formats() -> tuple[str, ...]:
    """PIL's names of the formats that are read."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - LEFT_OUT))


@lru_cache(maxsize=1)
def image_extensions() -> frozenset[str]:
    """File extensions of the formats that are read, lower case, with the dot."""
    formats = set(image_formats())
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted by their path relative to it, hidden files and folders left out.

    Links to folders are followed, each folder once.

    Raises:
        ValueError: if there is none; the message names the extensions looked for.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in image_extensions()
        ]
    if not found:
        looked_for = " ".join(sorted(image_extensions()))
        raise ValueError(f"no images in {folder} or below it; looked for files that end in {looked_for}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def decode(data: bytes) -> Image.Image:
    """The first frame of an encoded image as RGB.

    EXIF orientation is not applied and transparency is dropped, as in timm's and torchvision's data sets, so that
    numbers agree with theirs. PIL's limit on decompressed size is kept.

    Raises:
        UnreadableImageError: whatever is wrong with the bytes.
    """
    if not data:
        raise UnreadableImageError("empty file")
    try:
        with Image.open(BytesIO(data), formats=image_formats()) as image:
            image.load()
            return to_rgb(image)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:  # its own text names a memory address
        raise UnreadableImageError("not an image that PIL can read") from error
    except Exception as error:  # decoders meet broken files with OSError, SyntaxError, struct.error, ValueError, …
        raise UnreadableImageError(unreadable_reason(error)) from error


def unreadable_reason(error: Exception) -> str:
    """An exception as one line for a report."""
    text = " ".join(str(error).split())
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode with 8 bits per channel; grey levels of 16 bits are divided by 257, not cut off at 255.

    Raises:
        UnreadableImageError: for 32-bit pixels, whose range no format states.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        grey_HW = np.asarray(image)
        if grey_HW.size and (grey_HW.min() < 0 or grey_HW.max() > 65535):
            raise UnreadableImageError("32-bit pixels have no stated range; save the image with 8 or 16 bits")
        return Image.fromarray(np.rint(grey_HW / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels have no stated range; save the image with 8 or 16 bits")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, PIL warns about transparent palettes
    return image.convert("RGB")


def pixel_sha256(image: Image.Image) -> str:
    """SHA-256 of an image's mode, size and decoded pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
