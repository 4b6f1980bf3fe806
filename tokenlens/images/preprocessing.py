"""Turn images of a source into the model's input: decode, hash, transform and collate."""

# Shapes: B images of a batch, H height, W width.

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokenlens.images.decoding import UnreadableImageError, pixel_sha256
from tokenlens.images.files import RawImage
from tokenlens.images.pytorch import check_tensor
from tokenlens.storage.hashing import tensor_sha256

Transform = Callable[[Image.Image], Tensor]

DARK = 16
"""An image none of whose values (0 to 255) is larger counts as nearly black: 12-bit data in a 16-bit file."""


@dataclass(frozen=True)
class Batch:
    """Images that pass through the model together.

    Args:
        images: preprocessed, float32, (B, 3, H, W).
        indices: the index of each image in the source's order; the same for every rank, worker and batch size.
        names: of the files, rows or items.
        hashes: SHA-256 of each image's file, or of its pixels or tensor where there is no file.
        pixel_hashes: SHA-256 of each preprocessed image; the same for exact copies, whatever their files.
        dark: whether an image is nearly black before preprocessing; see ``DARK``.
    """

    images: Tensor
    indices: list[int]
    names: list[str]
    hashes: list[str]
    pixel_hashes: list[str]
    dark: list[bool]


@dataclass(frozen=True)
class PreparedImage:
    """An image as the model takes it, (3, H, W)."""

    index: int
    name: str
    hash: str
    image: Tensor
    pixel_hash: str
    dark: bool = False


@dataclass(frozen=True)
class SkippedImage:
    """An image that is left out; ``invalid`` means that the input is wrong, which raises an error instead."""

    name: str
    reason: str
    invalid: bool = False


Collated = tuple[Batch | None, list[SkippedImage]]


def prepare(
    raw: RawImage, index: int, transform: Transform, image_size: tuple[int, int] | None
) -> PreparedImage | SkippedImage:
    """Decode, hash and transform one image."""
    name, content = raw.name, raw.content
    if isinstance(content, Tensor):
        try:
            check_tensor(content[None], image_size, name)
        except ValueError as error:
            return SkippedImage(name, str(error), invalid=True)
        digest = tensor_sha256(content)
        return PreparedImage(index, name, digest, content.detach().cpu().float(), digest)
    try:
        image = raw.decode(image_size)
    except UnreadableImageError as error:
        return SkippedImage(name, str(error), raw.invalid)
    digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else pixel_sha256(image)
    pixels = transform(image)
    return PreparedImage(index, name, digest, pixels, tensor_sha256(pixels), is_dark(image))


def is_dark(image: Image.Image) -> bool:
    """Return whether no value of an RGB image is above ``DARK``."""
    sample = image.resize((16, 16), Image.Resampling.NEAREST)  # in most images it settles the question
    return _largest(sample) <= DARK and _largest(image) <= DARK


def _largest(image: Image.Image) -> int:
    extrema: Any = image.getextrema()  # of each channel
    return max(high for _, high in extrema)


def collate(images: Iterable[PreparedImage | SkippedImage]) -> Collated:
    """Return the prepared images as a batch (None if there are none), and the skipped ones."""
    images = list(images)
    prepared = [image for image in images if isinstance(image, PreparedImage)]
    skipped = [image for image in images if isinstance(image, SkippedImage)]
    if not prepared:
        return None, skipped
    first = prepared[0]
    other = next((image for image in prepared if image.image.shape != first.image.shape), None)
    if other is not None:
        reason = (
            f"the images of a batch differ in shape: {first.name} has {tuple(first.image.shape)}, {other.name} has "
            f"{tuple(other.image.shape)}; expected one shape"
        )
        return None, [SkippedImage(other.name, reason, invalid=True)]
    return Batch(
        images=torch.stack([image.image for image in prepared]),
        indices=[image.index for image in prepared],
        names=[image.name for image in prepared],
        hashes=[image.hash for image in prepared],
        pixel_hashes=[image.pixel_hash for image in prepared],
        dark=[image.dark for image in prepared],
    ), skipped
