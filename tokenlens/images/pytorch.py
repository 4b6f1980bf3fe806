"""Images given as PyTorch objects: a tensor, a ``Dataset`` or an ``IterableDataset``."""

# Shapes: N images, C channels, H height, W width.

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenlens.images.decoding import describe_error, to_rgb
from tokenlens.images.files import RawImage, printable_name

READ_ERRORS = (OSError, SyntaxError, EOFError, Image.DecompressionBombError)
"""Errors that PIL and torchvision raise for damaged images. Any other error is a bug of the data set."""


class TensorImages:
    """The rows of a tensor (N, C, H, W)."""

    def __init__(self, images_NCHW: Tensor) -> None:
        self.images_NCHW = images_NCHW

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def __getitem__(self, index: int) -> RawImage:
        return RawImage(f"image {index}", self.images_NCHW[index])


def check_tensor(images: Tensor, image_size: tuple[int, int] | None, name: str = "the tensor of images") -> None:
    """Check that a tensor holds preprocessed images (N, C, H, W); how many channels, the model decides.

    Args:
        images: the tensor.
        image_size: (height, width) that the model takes; None accepts any.
        name: what the error message calls the tensor.

    Raises:
        ValueError: if the shape, dtype or size is wrong, or a value is not finite.
    """
    shape = "×".join(map(str, images.shape)) or "none"
    if images.ndim != 4:
        raise ValueError(f"{name} must have the shape N×channels×height×width, got {shape}")
    if not images.is_floating_point():
        raise ValueError(
            f"{name} must hold preprocessed floating-point numbers, got {images.dtype}; apply the model's transform "
            "(LoadedModel.transform()) to raw images first"
        )
    if image_size is not None and tuple(images.shape[2:]) != tuple(image_size):
        raise ValueError(f"{name} must have {image_size[0]}×{image_size[1]} pixels for this model, got {shape}")
    # The sum is finite if and only if every value is (float64 cannot overflow here), in a fifth of the time.
    if not bool(torch.isfinite(images.sum(dtype=torch.float64))):
        raise ValueError(f"{name} must be finite, but contains NaN or infinite values")


class DatasetImages:
    """The items of a data set with ``len`` and ``[]``."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> RawImage:
        name = _item_name(self.dataset, index)
        try:
            item = self.dataset[index]
        except READ_ERRORS as error:
            return RawImage(name, reason=describe_error(error))
        return _raw_image(name, item)


class IterableDatasetImages:
    """The items of an iterable data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[RawImage]:
        for index, item in enumerate(self.dataset):
            yield _raw_image(f"item {index}", item)


def extract_image(item: Any) -> Any:
    """Return the image of an (image, label) tuple or a dict; other items unchanged.

    A dict's image is its "pixel_values" or "image", or else its only PIL image or tensor of 3 or 4 dimensions.
    """
    if isinstance(item, Mapping):
        for name in ("pixel_values", "image"):
            if name in item:
                return item[name]
        found = [v for v in item.values() if isinstance(v, Image.Image) or (isinstance(v, Tensor) and v.ndim in (3, 4))]
        return found[0] if len(found) == 1 else item
    return item[0] if isinstance(item, tuple | list) and item else item


def _raw_image(name: str, item: Any) -> RawImage:
    content = extract_image(item)
    if isinstance(content, Image.Image):
        try:
            return RawImage(name, to_rgb(content))
        except (*READ_ERRORS, ValueError) as error:
            return RawImage(name, reason=describe_error(error))
    if isinstance(content, Tensor):
        return RawImage(name, content)
    fields = f" with {', '.join(map(str, content)) or 'nothing'}" if isinstance(content, Mapping) else ""
    reason = (
        f"{name} of the data set is no image but {describe_kind(content)}{fields}; expected a PIL image, a tensor "
        "(3, height, width), a tuple (image, label), or a dict with one image, or with 'image' or 'pixel_values'"
    )
    return RawImage(name, reason=reason, invalid=True)


def describe_kind(content: Any) -> str:
    """Return what an object is, in words.

    >>> describe_kind("a.jpg"), describe_kind(None), describe_kind(np.zeros(3))
    ("the text 'a.jpg'", 'nothing (None)', 'a NumPy array; torch.from_numpy turns it into a tensor')
    """
    if content is None:
        return "nothing (None)"
    if isinstance(content, str | int | float):
        return f"the {'text' if isinstance(content, str) else 'number'} {content!r}"
    if isinstance(content, np.ndarray):
        return "a NumPy array; torch.from_numpy turns it into a tensor"
    known = {Mapping: "a dict", bytes: "bytes", list | tuple: "a list"}
    found = next((words for kind, words in known.items() if isinstance(content, kind)), None)
    return found or f"a {type(content).__name__}"


def _item_name(dataset: Any, index: int) -> str:
    """Return the file name of an item of a torchvision folder, relative to its root; otherwise its index."""
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, list) and len(samples) == len(dataset) and isinstance(samples[index], tuple):
        path = samples[index][0]
        if isinstance(path, str | os.PathLike):
            root = getattr(dataset, "root", None)
            return printable_name(os.path.relpath(path, root) if root else os.fspath(path))
    return f"item {index}"
