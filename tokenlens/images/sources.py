"""Open a source of images: a folder, the sample images, a tensor, a data set or a stream."""

# Shapes: N images, H height, W width.

from __future__ import annotations

import os
from collections.abc import Iterable, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tokenlens.images.files import ImageFiles, IndexedImages, RawImage, find_images
from tokenlens.images.huggingface import HuggingFaceImages
from tokenlens.images.preprocessing import Transform
from tokenlens.images.pytorch import DatasetImages, IterableDatasetImages, TensorImages, check_tensor
from tokenlens.images.sample import PHOTOGRAPHS, VIEWS, SampleViews
from tokenlens.images.webdataset import WebDatasetImages

FORMS = "a folder of images, an image file, sample, hfds/NAME[:SPLIT] or wds/SHARDS"

SAMPLE_NOTE = (
    f"The images are crops of {len(PHOTOGRAPHS)} photographs. The intervals treat them as independent images, so they "
    "are too narrow as statements about other photographs (by a factor of 2 to 3 for cosines of DINOv2 ViT-S). Use "
    "your own images for numbers that you quote."
)


@dataclass
class ImageSource:
    """Images in a fixed order, which ``iterate_batches`` reads.

    Args:
        description: where the images come from and which of them are used, as text.
        images: the source: indexed, a stream, or a DataLoader.
        total: number of images, unreadable ones included; None if it is known only after reading them.
        order: (total,) the indices of the images in an indexed source; None for a stream or a DataLoader.
        limit: how many images of a stream or a DataLoader are read; None for all.
        transform: RGB image → (3, H, W).
        image_size: (height, width) that the model takes; None accepts any.
        note: what a reader of the numbers must know about these images, or empty.
        skipped: ``{"name", "reason"}`` of each image that was unreadable in the last iteration (on this rank).
    """

    description: str
    images: IndexedImages | Iterable[RawImage] | DataLoader[Any] = field(repr=False)
    total: int | None
    order: np.ndarray | None = field(repr=False)
    limit: int | None
    transform: Transform = field(repr=False)
    image_size: tuple[int, int] | None
    note: str = ""
    skipped: list[dict[str, str]] = field(default_factory=list)


def open_images(
    images: str | os.PathLike[str] | Tensor | Dataset[Any] | DataLoader[Any],
    *,
    transform: Transform | None = None,
    limit: int | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
) -> ImageSource:
    """Open a source of images without reading them.

    EXIF orientation is not applied and transparency is dropped, as in timm and torchvision.

    Args:
        images: one of

            - a folder: all image files in it and its subfolders, sorted by relative path, hidden files left out;
            - an image file;
            - ``"sample"``: random crops (64, or ``limit``) of photographs that come with the dependencies;
            - ``"hfds/NAME[:SPLIT]"``: a Hugging Face data set, on the Hub or on disk;
            - ``"wds/SHARDS"``: webdataset shards, a folder of them or a pattern with braces;
            - a tensor (N, 3, H, W), already preprocessed;
            - a PyTorch ``Dataset`` or anything else with ``len`` and ``[]``, whose items are PIL images, tensors
              (preprocessed), tuples (image, label) or dicts with ``"image"`` or ``"pixel_values"``;
            - a ``DataLoader``, which keeps its own batches.
        transform: RGB image → (3, H, W), usually ``LoadedModel.transform()``; not applied to tensors. Defaults to
            timm's ImageNet evaluation transform at ``image_size``, or 224.
        limit: maximum number of images: a random subset, in the usual order; of a stream or a DataLoader the first
            ones. ``description`` states which.
        seed: seed for the random subset and the sample crops.
        image_size: (height, width) that the model takes; tensors are checked against it.

    Raises:
        ValueError: for a missing path, a folder without images, a tensor of the wrong shape or dtype or with values
            that are not finite, a missing package, or a limit below 1.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a whole number of images, at least 1, got {limit!r}")
    if transform is None:
        from timm.data import create_transform

        transform = create_transform((3, *(image_size or (224, 224))), is_training=False)
    content: IndexedImages | Iterable[RawImage] | DataLoader[Any]
    if isinstance(images, DataLoader):
        description, content = f"DataLoader over {type(images.dataset).__qualname__}", images
    elif isinstance(images, IterableDataset):
        description, content = f"{type(images).__qualname__} (iterable)", IterableDatasetImages(images)
    elif isinstance(images, Tensor):
        check_tensor(images, image_size)
        description, content = f"tensor {'×'.join(map(str, images.shape))}", TensorImages(images.detach())
    elif isinstance(images, str | os.PathLike):
        description, content = _open_named(os.fspath(images), limit, seed)
    elif hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        description, content = f"data set {type(images).__qualname__}", DatasetImages(images)
    else:
        raise ValueError(
            f"expected {FORMS}, a tensor (N, 3, H, W), a Dataset with a length or a DataLoader as images, got "
            f"{type(images).__qualname__}"
        )
    total, order, selection = _select(description, content, limit, seed)
    note = SAMPLE_NOTE if isinstance(content, SampleViews) else ""
    return ImageSource(description + selection, content, total, order, limit, transform, image_size, note)


def _open_named(name: str, limit: int | None, seed: int) -> tuple[str, IndexedImages | Iterable[RawImage]]:
    if name == "sample":
        views = limit or VIEWS
        photographs = ", ".join(path.rpartition("/")[2] for _, path in PHOTOGRAPHS)
        description = f"sample: {views} views (crops, seed {seed}) of {len(PHOTOGRAPHS)} photographs: {photographs}"
        return description, SampleViews(views, seed)
    prefix, _, rest = name.partition("/")
    if prefix.lower() == "hfds":
        rows = HuggingFaceImages(rest)
        return rows.description, rows
    if prefix.lower() == "wds":
        shards = WebDatasetImages(rest)
        return shards.description, shards
    path = Path(name).expanduser()
    if path.is_dir():
        return f"folder {path}", ImageFiles(path, find_images(path))
    if path.is_file():
        if path.suffix.lower() == ".tar":
            raise ValueError(f"{path} is an archive; to read it as a webdataset shard, write wds/{path}")
        return f"image {path}", ImageFiles(path.parent, [path.name])
    raise ValueError(f"there is no {path}; expected {FORMS} as images")


def _select(
    description: str, images: IndexedImages | Iterable[RawImage] | DataLoader[Any], limit: int | None, seed: int
) -> tuple[int | None, np.ndarray | None, str]:
    """Return the number of images, their indices in an indexed source, and which they are, as text."""
    if isinstance(images, Iterable):  # a stream or a DataLoader
        total = None
        if isinstance(images, DataLoader) and isinstance(images.dataset, Sized) and not images.drop_last:
            total = len(images.dataset)
        if limit is None:
            return total, None, ""
        return None if total is None else min(total, limit), None, f", the first {limit} images"
    count = len(images)
    if count == 0:
        raise ValueError(f"{description} is empty; expected at least one image")
    if limit is None or limit >= count:
        return count, np.arange(count), ""
    # RandomState: NumPy promises the same numbers in every version, which it does not for Generator.
    order = np.sort(np.random.RandomState(seed % 2**32).permutation(count)[:limit])
    return limit, order, f", a random {limit} of {count} images (seed {seed})"
