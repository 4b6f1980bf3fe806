"""Images with the number of their class, for training and probing: folders, tar archives, shards, Hugging Face data."""

# Shapes: N images.

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenlens.images.decoding import UnreadableImageError, decode, to_rgb
from tokenlens.images.items import Record, Records
from tokenlens.images.labelled.datasets import open_rows, open_shards
from tokenlens.images.labelled.folders import ArchiveTree, FolderTree, open_tree
from tokenlens.images.labelled.splits import Split, SplitImages
from tokenlens.images.packed_strings import Names
from tokenlens.images.preprocessing import check_ratio

HELD_OUT = 0.1
"""Share of each class that is kept for the test where a source has no split for it."""

FORMS = "a folder of images, a .tar of one, wds/SHARDS or hfds/NAME"


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images in a fixed order, of one split of a source, N of them.

    Args:
        names: of the images, unique in their split.
        labels: (N,) int64, numbers of classes; None where the images have none.
        classes: their names, by number; empty without labels.
        description: for a run folder: ``source``, ``split`` (what was taken, for people), ``count``, ``classes`` (how
            many) and ``sha256`` of names, labels and classes.
        records: the images of the source, undecoded.
        taken: (N,) int64, which of the records these are.
    """

    names: Names
    labels: np.ndarray | None
    classes: tuple[str, ...]
    description: dict[str, Any]
    records: Records
    taken: np.ndarray

    def __len__(self) -> int:
        return len(self.taken)

    def read(self, index: int) -> Image.Image:
        """An image as RGB.

        Raises:
            tokenlens.images.decoding.UnreadableImageError: if it cannot be read or decoded; the message is the reason.
        """
        return read_rgb(self.records[int(self.taken[index])])


def read_rgb(record: Record) -> Image.Image:
    """The image of a record (of a file or an image, not of a tensor) as RGB.

    Raises:
        tokenlens.images.decoding.UnreadableImageError: if it cannot be decoded, or is so narrow that it could not be enlarged.
    """
    if record.content is None:
        raise UnreadableImageError(record.reason)
    assert isinstance(record.content, bytes | Image.Image)
    image = decode(record.content) if isinstance(record.content, bytes) else to_rgb(record.content)
    check_ratio(image, None)
    return image


def open_labelled(source: str | os.PathLike[str], split: Split = "train") -> LabelledImages:
    """Open the training or the test images of a source without reading them.

    docs/training-data.md has the layouts. Where a source has no split for the test, a tenth of each class is held out
    for it, always the same one, and training has the rest; images without labels then are all for training.

    Args:
        source: one of

            - a folder with ``train`` and ``val`` (or ``validation``, ``test``), each with a folder for each class;
            - a folder with a folder for each class, or with images only: these have no labels;
            - a .tar of one of these;
            - ``"wds/SHARDS"``: local webdataset shards, a folder of them or a pattern with braces;
            - ``"hfds/NAME[:SPLIT]"``: a Hugging Face data set, of the hub or on disk.
        split: ``"train"`` or ``"test"``.

    Raises:
        ValueError: if there is no such source or split, or it is laid out in another way; the message says what was
            expected and what was found.
    """
    if split not in ("train", "test"):
        raise ValueError(f"a split is train or test, got {split!r}")
    found = _split_images(os.fspath(source), split)
    if found.labels is None and split == "test":
        raise ValueError(f"the images of {found.source} ({found.taken}) have no labels to test against")
    names, labels, taken = found.names, found.labels, found.taken
    positions = np.arange(len(names))
    if found.whole and labels is not None:
        held = held_out(labels)
        positions = np.flatnonzero(held if split == "test" else ~held)
        names, labels = names.take(positions), labels[positions]
        taken += f", {'a' if split == 'test' else 'all but a'} tenth of each class (it has no test split; seed 0)"
    if not len(names):
        raise ValueError(f"no image is left for the split {split} of {found.source} ({taken})")
    description = {
        "source": found.source,
        "split": taken,
        "count": len(names),
        "classes": len(found.classes),
        "sha256": content_sha256(names, labels, found.classes),
    }
    return LabelledImages(names, labels, found.classes, description, found.records, positions)


def _split_images(name: str, split: Split) -> SplitImages:
    prefix, _, rest = name.partition("/")
    if prefix.lower() == "hfds":
        return open_rows(rest, split)
    if prefix.lower() == "wds":
        return open_shards(rest, split)
    path = Path(name).expanduser()
    if path.is_dir():
        return open_tree(FolderTree(path), split)
    if path.is_file() and path.suffix.lower() == ".tar":
        return open_tree(ArchiveTree(path), split)
    what = f"{path} is a file" if path.is_file() else f"there is no {path}"
    raise ValueError(f"{what}; images for training are {FORMS}")


def held_out(labels: np.ndarray) -> np.ndarray:
    """(N,) bool: a tenth of each class, at least one image of it unless it has no other."""
    held = np.zeros(len(labels), dtype=bool)
    # RandomState: NumPy promises the same numbers in every version, which it does not for Generator. Not scikit-learn's
    # train_test_split, which refuses classes of one image.
    draw = np.random.RandomState(0)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(round(HELD_OUT * len(members)), int(len(members) > 1))
        held[draw.permutation(members)[:count]] = True
    return held


def content_sha256(names: Names, labels: np.ndarray | None, classes: tuple[str, ...]) -> str:
    """SHA-256 of which images these are and of what classes, by their names; of no pixels."""
    digest = hashlib.sha256(names.text.tobytes())
    digest.update(names.ends.astype("<i8").tobytes())
    if labels is not None:
        digest.update(labels.astype("<i8").tobytes())
    digest.update("\n".join(classes).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
