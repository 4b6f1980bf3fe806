"""From a record to what the model takes: decode, hash, transform, and put together in batches."""

# Shapes: B images of a batch, N images, H height, W width.

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from tokenlens.images.decoding import UnreadableImageError, decode, pixel_sha256
from tokenlens.images.items import Record
from tokenlens.storage.hashing import tensor_sha256

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Batch:
    """Images that go through the model together.

    Args:
        images: preprocessed, float32, (B, 3, H, W).
        indices: the place of each image in the source's order; the same for every rank, worker and batch size.
        names: of the files, rows or items.
        hashes: SHA-256 of each image's file, or of its pixels or tensor where there is no file.
    """

    images: Tensor
    indices: list[int]
    names: list[str]
    hashes: list[str]


def check_tensor(images: Tensor, image_size: tuple[int, int] | None, what: str = "the tensor of images") -> None:
    """ValueError unless these are preprocessed images (N, 3, H, W)."""
    shape = "×".join(map(str, images.shape)) or "none"
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{what} must be of shape N×3×height×width, got {shape}")
    if not images.is_floating_point():
        raise ValueError(
            f"{what} must be preprocessed floating-point numbers, got {images.dtype}; pass raw images through the "
            "model's transform (LoadedModel.transform()) first"
        )
    if image_size is not None and tuple(images.shape[2:]) != tuple(image_size):
        raise ValueError(f"{what} must be {image_size[0]}×{image_size[1]} pixels for this model, got {shape}")
    # A sum, in float64 because it must not overflow, is finite if and only if all of it are; a fifth of the time.
    if not bool(torch.isfinite(images.sum(dtype=torch.float64))):
        raise ValueError(f"{what} must be finite, but holds NaN or infinite values")


@dataclass(frozen=True)
class Ready:
    """An image as the model takes it, (3, H, W)."""

    index: int
    name: str
    hash: str
    image: Tensor


@dataclass(frozen=True)
class Skipped:
    """An image that was left out; ``refused``: a wrong input, for which the caller gets an error instead."""

    name: str
    reason: str
    refused: bool = False


def prepare(record: Record, index: int, transform: Transform, image_size: tuple[int, int] | None) -> Ready | Skipped:
    """Decode, hash and transform one image."""
    content = record.content
    if content is None:
        return Skipped(record.name, record.reason, record.refused)
    if isinstance(content, Tensor):
        try:
            check_tensor(content[None], image_size, what=record.name)
        except ValueError as error:
            return Skipped(record.name, str(error), refused=True)
        return Ready(index, record.name, tensor_sha256(content), content.detach().cpu().float())
    try:
        image = decode(content) if isinstance(content, bytes) else content
        check_ratio(image, image_size)
    except UnreadableImageError as error:
        return Skipped(record.name, str(error))
    digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else pixel_sha256(image)
    return Ready(index, record.name, digest, transform(image))


def check_ratio(image: Image.Image, image_size: tuple[int, int] | None) -> None:
    """A line of 1×30000 pixels passes PIL's limit, but not when its short side is enlarged to the model's."""
    short, long = sorted(image.size)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and long / max(short, 1) * max(image_size or (224, 224)) ** 2 > limit:
        raise UnreadableImageError(
            f"{image.width}×{image.height} pixels: enlarged to the model's size they would exceed PIL's limit, {limit}"
        )


Collated = tuple[Batch | None, list[Skipped]]


def collate(prepared: Iterable[Ready | Skipped]) -> Collated:
    """A batch of what is ready (None if nothing is), and what was skipped."""
    prepared = list(prepared)
    ready = [item for item in prepared if isinstance(item, Ready)]
    skipped = [item for item in prepared if isinstance(item, Skipped)]
    other = next((item for item in ready if item.image.shape != ready[0].image.shape), None)
    if other is not None:
        reason = (
            f"images of one batch differ in shape: {ready[0].name} is {tuple(ready[0].image.shape)}, {other.name} "
            f"{tuple(other.image.shape)}"
        )
        return None, [Skipped(other.name, reason, refused=True)]
    if not ready:
        return None, skipped
    return Batch(
        images=torch.stack([item.image for item in ready]),
        indices=[item.index for item in ready],
        names=[item.name for item in ready],
        hashes=[item.hash for item in ready],
    ), skipped
