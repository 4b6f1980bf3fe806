"""Decode image files as RGB."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

EXCLUDED_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""PIL formats that are not raster images or need an external program (PIL runs Ghostscript on EPS files)."""


class UnreadableImageError(ValueError):
    """An image that cannot be read or decoded; the message is one line that states the reason."""


@lru_cache(maxsize=1)
def image_formats() -> tuple[str, ...]:
    """Return PIL's names of the supported formats."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - EXCLUDED_FORMATS))


@lru_cache(maxsize=1)
def image_extensions() -> frozenset[str]:
    """Return the file extensions of the supported formats, in lower case, with the dot."""
    formats = set(image_formats())
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def is_image_name(name: str) -> bool:
    """Return whether a file name has the extension of a supported format."""
    return os.path.splitext(name)[1].lower() in image_extensions()


def decode(data: bytes) -> Image.Image:
    """Decode the first frame of an image file as RGB.

    As in the data sets of timm and torchvision, EXIF orientation is not applied and transparency is dropped, so that
    numbers agree with theirs. PIL's limit on the decompressed size applies.

    Raises:
        UnreadableImageError: if the bytes cannot be decoded, for any reason.
    """
    if not data:
        raise UnreadableImageError("empty file")
    try:
        with Image.open(BytesIO(data), formats=image_formats()) as image:
            image.load()
            return to_rgb(image)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:  # PIL's message contains a memory address
        raise UnreadableImageError("not an image that PIL can read") from error
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, ValueError, … for damaged files
        raise UnreadableImageError(describe_error(error)) from error


def describe_error(error: Exception) -> str:
    """Return an exception as one line of text."""
    text = " ".join(str(error).split())
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB with 8 bits per channel; 16-bit grey levels are divided by 257.

    Raises:
        UnreadableImageError: for 32-bit integers and floating-point pixels, whose range no format states.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        grey_HW = np.asarray(image)
        if grey_HW.size and (grey_HW.min() < 0 or grey_HW.max() > 65535):
            raise UnreadableImageError("32-bit pixels have no stated range; save the image with 8 or 16 bits")
        return Image.fromarray(np.rint(grey_HW / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels have no stated range; save the image with 8 or 16 bits")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # PIL warns if a palette with transparency is converted to RGB directly
    return image.convert("RGB")


def check_enlarged_size(image: Image.Image, image_size: tuple[int, int] | None) -> None:
    """Check that an image stays within PIL's size limit when its short side is resized to the model's input.

    A line of 1×30000 pixels is within the limit, but not after resizing.

    Raises:
        UnreadableImageError: if the resized image would exceed the limit.
    """
    short, long = sorted(image.size)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and long / max(short, 1) * max(image_size or (224, 224)) ** 2 > limit:
        raise UnreadableImageError(
            f"{image.width}×{image.height} pixels: resized for the model, it would exceed PIL's limit of {limit} pixels"
        )


def pixel_sha256(image: Image.Image) -> str:
    """Return the SHA-256 of an image's mode, size and decoded pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
