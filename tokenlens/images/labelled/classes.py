"""Images with class labels, for training and probing: folders, tar archives, webdataset shards, Hugging Face data."""

# Shapes: N images.

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenlens.images.files import IndexedImages
from tokenlens.images.labelled.folders import ArchiveTree, FolderTree, open_tree
from tokenlens.images.labelled.huggingface import open_huggingface
from tokenlens.images.labelled.splits import Split, SplitImages, check_split, describe_split
from tokenlens.images.labelled.webdataset import open_webdataset
from tokenlens.images.layouts import check_classes, check_photographs
from tokenlens.images.packed_strings import PackedStrings
from tokenlens.images.sources import check_image_file, check_local

HELD_OUT = 0.1
"""Share of each class that is held out for testing where a source has no test split."""

FORMS = "a folder of images, a .tar of such a folder, wds/SHARDS or hfds/NAME"


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """N images of one split of a source, in a fixed order.

    Args:
        names: of the images, unique in their split.
        labels: (N,) int64, class numbers; None if the images have no labels.
        classes: class names, by number; empty without labels.
        description: for a run folder; see ``tokenlens.images.labelled.splits.describe_split``.
        images: the source, whose images are undecoded.
        positions: (N,) int64, indices of these images in the source.
    """

    names: PackedStrings
    labels: np.ndarray | None
    classes: tuple[str, ...]
    description: dict[str, Any]
    images: IndexedImages
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, index: int) -> Image.Image:
        """Read one image as RGB.

        Raises:
            tokenlens.images.decoding.UnreadableImageError: if it cannot be read or decoded; the message is the reason.
        """
        return self.images[int(self.positions[index])].decode()

    def select(self, indices: np.ndarray, split: str) -> LabelledImages:
        """Return some of the images, in the order of ``indices``; ``split`` describes which, as text."""
        names = self.names.take(indices)
        labels = None if self.labels is None else self.labels[indices]
        before = self.description
        description = describe_split(before["source"], split, names, labels, self.classes, before.get("notes", ()))
        positions = self.positions[indices]
        return replace(self, names=names, labels=labels, description=description, positions=positions)


def open_labelled(source: str | os.PathLike[str], split: Split = "train") -> LabelledImages:
    """Open the training or the test images of a source without reading them.

    docs/training-data.md describes the layouts. If a source has no test split, a fixed tenth of each class is held out
    for testing, and the rest is for training; images without labels are all for training.

    Args:
        source: one of

            - a folder with ``train`` and ``val`` (or ``validation``, ``test``), each with a folder per class;
            - a folder with a folder per class, or only with images, which then have no labels;
            - a .tar of such a folder;
            - ``"wds/SHARDS"``: local webdataset shards, a folder of them or a pattern with braces;
            - ``"hfds/NAME[:SPLIT]"``: a Hugging Face data set, on the Hub or on disk.
        split: ``"train"`` or ``"test"``.

    Raises:
        ValueError: if there is no such source or split, or its layout differs; the message states what was expected
            and what was found.
    """
    check_split(split)
    found = _open_split(os.fspath(source), split)
    if found.labels is None and split == "test":
        raise ValueError(f"the images of {found.source} ({found.split}) have no labels; testing needs labels")
    check_classes(found.source, found.classes)
    check_photographs(found.source, found.names)
    notes = getattr(found.images, "notes", ())
    description = describe_split(found.source, found.split, found.names, found.labels, found.classes, notes)
    positions = np.arange(len(found.names))
    images = LabelledImages(found.names, found.labels, found.classes, description, found.images, positions)
    if found.undivided and found.labels is not None:
        held_out = select_held_out(found.labels)
        share = "a" if split == "test" else "all but a"
        text = f"{found.split}, {share} tenth of each class (it has no test split; seed 0)"
        images = images.select(np.flatnonzero(held_out if split == "test" else ~held_out), text)
    if not len(images):
        raise ValueError(f"no image is left for the split {split} of {found.source} ({images.description['split']})")
    return images


def _open_split(name: str, split: Split) -> SplitImages:
    prefix, _, rest = name.partition("/")
    if prefix.lower() in ("hfds", "wds") and not rest:
        raise ValueError(f"{name} names no data; expected {FORMS} as labelled images")
    if prefix.lower() == "hfds":
        return open_huggingface(rest, split)
    if prefix.lower() == "wds":
        return open_webdataset(rest, split)
    check_local(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return open_tree(FolderTree(path), split)
    if path.is_file() and path.suffix.lower() == ".tar":
        return open_tree(ArchiveTree(path), split)
    check_image_file(path)
    problem = f"{path} is a file" if path.is_file() else f"there is no {path}"
    raise ValueError(f"{problem}; expected {FORMS} as labelled images")


def select_held_out(labels: np.ndarray) -> np.ndarray:
    """Return which images are held out, (N,) bool: a tenth of each class, at least one image and never all."""
    held_out = np.zeros(len(labels), dtype=bool)
    # RandomState: NumPy promises the same numbers in every version, which it does not for Generator. scikit-learn's
    # train_test_split refuses classes of one image.
    random = np.random.RandomState(0)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(round(HELD_OUT * len(members)), int(len(members) > 1))
        held_out[random.permutation(members)[:count]] = True
    return held_out
