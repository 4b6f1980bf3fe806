"""Training and test splits, class names and labels, in all layouts of labelled images."""

# Shapes: N images.

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tokenlens.images.files import IndexedImages, preview_names, printable_name
from tokenlens.images.packed_strings import PackedStrings

Split = Literal["train", "test"]

TEST_SPLITS = ("val", "validation", "test")
"""Names of test splits, in order of preference: ImageNet's "test" has no labels."""

SPLITS = ("train", *TEST_SPLITS)
"""Names that folders, shards and data sets use for splits."""


@dataclass(frozen=True)
class SplitImages:
    """The images of one split of a source, before any are held out.

    Args:
        source: where the images come from, as text.
        split: which split this is, as text.
        undivided: whether the source has no test split, so that these are all its images.
        images: N images.
        names: of the images, unique.
        labels: (N,) int64, class numbers, or None.
        classes: class names, by number; empty without labels.
    """

    source: str
    split: str
    undivided: bool
    images: IndexedImages
    names: PackedStrings
    labels: np.ndarray | None
    classes: tuple[str, ...]


def check_split(split: str) -> None:
    """Check that a split is "train" or "test"; ValueError otherwise."""
    if split not in ("train", "test"):
        raise ValueError(f"expected the split train or test, got {split!r}")


def choose_split(available: Iterable[str], split: Split, source: str) -> tuple[str, bool]:
    """Return the name that a source has for a split, and whether the source has no test split.

    Raises:
        ValueError: if there is no training split.
    """
    available = list(available)
    if "train" not in available:
        raise ValueError(
            f"no split train in {source}, only {preview_names(sorted(available))}; expected train and one of "
            f"{', '.join(TEST_SPLITS)}"
        )
    test = next((name for name in TEST_SPLITS if name in available), None)
    return "train" if split == "train" or test is None else test, test is None


def describe_split(
    source: str,
    split: str,
    names: PackedStrings,
    labels: np.ndarray | None,
    classes: tuple[str, ...],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Describe the images of a split for a run folder.

    Returns:
        ``source``, ``split``, ``count``, ``classes`` (number of classes), ``sha256`` of names, labels and class names,
        but not of pixels, and, if anything was left out or lost, ``notes`` with sentences about it.
    """
    digest = hashlib.sha256(names.text.tobytes())
    digest.update(names.ends.astype("<i8").tobytes())
    if labels is not None:
        digest.update(labels.astype("<i8").tobytes())
    digest.update("\n".join(classes).encode("utf-8", "surrogateescape"))
    return {
        "source": source,
        "split": split,
        "count": len(names),
        "classes": len(classes),
        "sha256": digest.hexdigest(),
        **({"notes": list(notes)} if notes else {}),
    }


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read a text file with one class name per line, in the order of their numbers, or ``number name`` per line.

    Raises:
        ValueError: if the file is empty, or the numbers are not 0, 1, 2 …
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    numbered = [re.fullmatch(r"(\d+)[\s,:]+(\S.*)", line) for line in lines]
    if lines and all(numbered):
        numbers = [int(match[1]) for match in numbered if match]
        if numbers != list(range(len(numbers))):
            found = preview_names(list(map(str, numbers)))
            raise ValueError(f"the classes in {path} are numbered {found}; expected 0, 1, 2 …")
        lines = [match[2] for match in numbered if match]
    if not lines:
        raise ValueError(f"{path} is empty; expected one class name per line")
    return tuple(lines)


def check_labels(labels: np.ndarray, names: Sequence[str], classes: Sequence[str], source: str) -> None:
    """Check that every label is the number of a class; ValueError otherwise."""
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"{len(outside)} of {len(names)} images of {source} have no class, or one that the training images do not "
            f"have, e.g. {printable_name(names[first])}: {labels[first]}; expected 0 to {len(classes) - 1}"
        )
