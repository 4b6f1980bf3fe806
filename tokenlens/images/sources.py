"""Open a source of images: a folder, the sample images, a tensor, a data set or a stream."""

# Shapes: N images, H height, W width.

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tokenlens.catalog import did_you_mean
from tokenlens.images.decoding import is_image_name
from tokenlens.images.files import (
    ImageFiles,
    IndexedImages,
    RawImage,
    find_images,
    is_other_format,
    preview_names,
)
from tokenlens.images.huggingface import HuggingFaceImages
from tokenlens.images.layouts import check_photographs
from tokenlens.images.preprocessing import Transform
from tokenlens.images.pytorch import DatasetImages, IterableDatasetImages, TensorImages, check_tensor, describe_kind
from tokenlens.images.sample import PHOTOGRAPHS, VIEWS, SampleViews
from tokenlens.images.webdataset import WebDatasetImages
from tokenlens.storage.seeds import check_seed
from tokenlens.storage.wording import counted

FORMS = "a folder of images, an image file, a pattern, a .txt list of paths, sample, hfds/NAME[:SPLIT] or wds/SHARDS"

HINTS = {
    ".zip .7z .rar": "an archive; unpack it and give the folder",
    ".tgz .gz .xz .bz2": "a compressed archive; unpack it, or write wds/{path} if it is a webdataset shard",
    ".csv .tsv .json .jsonl .txt": "a list or a table, not images; give the folder with the images",
    ".parquet .arrow": "a table; write hfds/{folder} if it belongs to a Hugging Face data set",
    ".npy .npz .pt .pth .h5": "an array; in Python give the preprocessed images as a tensor (N, 3, H, W)",
}
"""What to do with a file that is no image, by its extensions."""

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
        notes: what a reader of the numbers must know about these images, as sentences.
        remarks: further notes, on what ``iterate_distinct`` saw (on all ranks).
        skipped: ``{"name", "reason"}`` of each image that was unreadable in the last iteration (on this rank).
        copies: ``{"name", "copy_of"}`` of each image that ``iterate_distinct`` left out (on all ranks).
    """

    description: str
    images: IndexedImages | Iterable[RawImage] | DataLoader[Any] = field(repr=False)
    total: int | None
    order: np.ndarray | None = field(repr=False)
    limit: int | None
    transform: Transform = field(repr=False)
    image_size: tuple[int, int] | None
    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    copies: list[dict[str, str]] = field(default_factory=list)


def open_images(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Tensor | Dataset[Any] | DataLoader[Any],
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
            - an image file, a list of image files, a text file (.txt) with the path of one in each line, relative to
              its folder, or a pattern with wildcards (``photos/*.jpg``, ``photos/**/*.png``);
            - ``"sample"``: random crops (64, or ``limit``) of photographs that come with the dependencies;
            - ``"hfds/NAME[:SPLIT]"``: a Hugging Face data set, on the Hub or on disk;
            - ``"wds/SHARDS"``: webdataset shards, a folder of them or a pattern with braces or wildcards;
            - a tensor (N, 3, H, W), already preprocessed;
            - a PyTorch ``Dataset`` or anything else with ``len`` and ``[]``, whose items are PIL images, tensors
              (preprocessed), tuples (image, label) or dicts with one image, or with ``"image"`` or ``"pixel_values"``;
            - a ``DataLoader``, which keeps its own batches.
        transform: RGB image → (3, H, W), usually ``LoadedModel.transform()``; not applied to tensors. Defaults to
            timm's ImageNet evaluation transform at ``image_size``, or 224.
        limit: maximum number of images: a random subset, in the usual order; of a stream or a DataLoader the first
            ones. ``description`` states which.
        seed: seed for the random subset and the sample crops.
        image_size: (height, width) that the model takes; tensors are checked against it.

    Raises:
        ValueError: for a missing path, a folder without images, a tensor of the wrong shape or dtype or with values
            that are not finite, a missing package, a folder with masks among the images, a limit below 1, or a seed
            above 2³² − 1.
    """
    check_seed(seed)
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
    elif isinstance(images, list | tuple) and images and all(isinstance(one, str | os.PathLike) for one in images):
        description = f"list of {counted(len(images), 'file')}"
        content = _open_list(description, [Path(one) for one in images])
    elif isinstance(images, Mapping):
        first = next(iter(images), "")
        raise ValueError(
            f"expected one data set, got several by name ({preview_names([str(name) for name in images])}); give one "
            f"of them, e.g. images[{first!r}]"
        )
    elif hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, np.ndarray):
        description, content = f"data set {type(images).__qualname__}", DatasetImages(images)
    else:
        raise ValueError(
            f"expected {FORMS}, a tensor (N, 3, H, W), a Dataset with a length or a DataLoader as images, got "
            f"{describe_kind(images)}"
        )
    total, order, selection = _select(description, content, limit, seed)
    notes = [SAMPLE_NOTE] if isinstance(content, SampleViews) else [*getattr(content, "notes", ())]
    return ImageSource(description + selection, content, total, order, limit, transform, image_size, notes)


def _open_named(name: str, limit: int | None, seed: int) -> tuple[str, IndexedImages | Iterable[RawImage]]:
    if name == "sample":
        views = limit or VIEWS
        photographs = ", ".join(path.rpartition("/")[2] for _, path in PHOTOGRAPHS)
        description = f"sample: {views} views (crops, seed {seed}) of {len(PHOTOGRAPHS)} photographs: {photographs}"
        return description, SampleViews(views, seed)
    prefix, _, rest = name.partition("/")
    if prefix.lower() in ("hfds", "wds") and not rest:
        raise ValueError(f"{name} names no data; expected {FORMS} as images")
    if prefix.lower() == "hfds":
        rows = HuggingFaceImages(rest)
        return rows.description, rows
    if prefix.lower() == "wds":
        shards = WebDatasetImages(rest)
        return shards.description, shards
    check_local(name)
    path = Path(name).expanduser()
    if path.is_dir():
        found = find_images(path)
        check_photographs(f"folder {path}", found.names)
        return f"folder {path}", found
    if path.is_file():
        if path.suffix.lower() == ".tar":
            raise ValueError(f"{path} is an archive; to read it as a webdataset shard, write wds/{path}")
        if path.suffix.lower() == ".txt":
            lines = map(str.strip, os.fsdecode(path.read_bytes()).splitlines())
            listed = [path.parent / line for line in lines if line]
            description = f"list {path} of {counted(len(listed), 'file')}"
            return description, _open_list(description, listed)
        check_image_file(path)
        if is_other_format(path.name):
            raise ValueError(
                f"{path} has the format {path.suffix.lower()}, which is not read; convert it to JPEG or PNG"
            )
        return f"image {path}", ImageFiles(path.parent, [path.name])
    if path.exists():
        raise ValueError(f"{path} is a pipe or a device; expected {FORMS} as images")
    if set(name) & set("*?["):
        return f"pattern {name}", _match_pattern(name)
    raise ValueError(
        f"there is no {path}; expected {FORMS} as images.{did_you_mean(name, ['sample'])}".removesuffix(".")
    )


def _open_list(description: str, paths: Sequence[Path]) -> ImageFiles:
    """Return image files in the order of their paths.

    Raises:
        ValueError: with the paths that are no files.
    """
    paths = [path.expanduser() for path in paths]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(f"{description}: there is no file {preview_names(missing)}")
    return ImageFiles(Path(), [str(path) for path in paths])


def _match_pattern(pattern: str) -> ImageFiles:
    """Return the image files that match a pattern, sorted; ``notes`` says which other files were left out."""
    files = [path for path in sorted(glob.glob(os.path.expanduser(pattern), recursive=True)) if os.path.isfile(path)]
    found = [path for path in files if is_image_name(path)]
    others = [path for path in files if not is_image_name(path)]
    if not found:
        raise ValueError(f"no image file matches the pattern {pattern}")
    left_out = f"{counted(len(others), 'file')} that match the pattern but are no images were left out"
    return ImageFiles(Path(), found, [f"{left_out}: {preview_names(others)}"] if others else [])


def check_local(name: str) -> None:
    """Raise ValueError for a URL."""
    if re.match(r"[a-z][a-z0-9+]+://", name):
        raise ValueError(
            f"{name} is a URL, and images are not downloaded; download them and give the folder. Webdataset shards can "
            f"be read from a server: wds/{name}"
        )


def check_image_file(path: Path) -> None:
    """Raise ValueError with what to do for a file that is an archive, a table or a list."""
    for extensions, hint in HINTS.items():
        if path.suffix.lower() in extensions.split():
            raise ValueError(f"{path} is {hint.format(path=path, folder=path.parent)}")


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
        return None if total is None else min(total, limit), None, f", the first {counted(limit, 'image')}"
    count = len(images)
    if count == 0:
        raise ValueError(f"{description} is empty; expected at least one image")
    if limit is None or limit >= count:
        return count, np.arange(count), ""
    # RandomState: NumPy promises the same numbers in every version, which it does not for Generator.
    order = np.sort(np.random.RandomState(seed % 2**32).permutation(count)[:limit])
    return limit, order, f", a random {limit} of {count} images (seed {seed})"
