"""Read images of a source and compare them."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenlens.images import Batch, ImageSource, iterate_batches

SIZE = 16


def shrink(image: Image.Image) -> Tensor:
    """Transform an image to (3, 16, 16) in [0, 1], enough to tell one from another."""
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_all(source: ImageSource, batch_size: int = 4, **options: int) -> list[Batch]:
    return list(iterate_batches(source, batch_size, **options))


def collect(batches: list[Batch], attribute: str) -> list[Any]:
    return [value for batch in batches for value in getattr(batch, attribute)]


def read_names(source: ImageSource) -> list[str]:
    return collect(read_all(source), "names")


def equal(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        (a.indices, a.names, a.hashes) == (b.indices, b.names, b.hashes) and torch.equal(a.images, b.images)
        for a, b in zip(left, right, strict=True)
    )


def merge_ranks(source: ImageSource, batch_size: int, world_size: int) -> list[Batch]:
    """Read each rank's share, and return the batches in the order of one process."""
    shares = (read_all(source, batch_size, rank=rank, world_size=world_size) for rank in range(world_size))
    return sorted((batch for share in shares for batch in share), key=lambda batch: batch.indices[0])
