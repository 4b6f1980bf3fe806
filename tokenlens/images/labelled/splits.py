"""What all layouts of training data share: the names of their splits, and how their classes are told."""

# Shapes: N images.

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tokenlens.images.items import Records, printable
from tokenlens.images.packed_strings import Names

Split = Literal["train", "test"]

TEST_SPLITS = ("val", "validation", "test")
"""What takes the part of the test split: the first of these that there is. ImageNet's own "test" has no labels."""

SPLITS = ("train", *TEST_SPLITS)
"""Names by which folders, shards and data sets say what they are for."""


@dataclass(frozen=True)
class SplitImages:
    """What a source has for one split, before anything is held out of it.

    Args:
        source: where it is from, for people.
        taken: which of its splits this is, for people.
        whole: whether the source has no split for the test, so that these are all its images.
        records: N images.
        names: of the images, unique.
        labels: (N,) int64, numbers of classes, or None.
        classes: their names, by number; empty without labels.
    """

    source: str
    taken: str
    whole: bool
    records: Records
    names: Names
    labels: np.ndarray | None
    classes: tuple[str, ...]


def choose_split(available: Iterable[str], split: Split, shown: str) -> tuple[str, bool]:
    """Which of the splits that a source has is taken, and whether it has none for the test.

    Raises:
        ValueError: if there is none for training.
    """
    available = list(available)
    if "train" not in available:
        raise ValueError(
            f"no split train in {shown}, only {some(sorted(available))}; expected train and one of "
            f"{', '.join(TEST_SPLITS)}"
        )
    test = next((name for name in TEST_SPLITS if name in available), None)
    return "train" if split == "train" or test is None else test, test is None


def check_labels(labels: np.ndarray, names: Sequence[str], classes: Sequence[str], shown: str) -> None:
    """ValueError if images have classes that there are not; ``shown`` says where the images are from."""
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"{len(outside)} of {len(names)} images of {shown} have no class or one that the training images do not "
            f"have, e.g. {printable(names[first])}: {labels[first]}; expected 0 to {len(classes) - 1}"
        )


def read_classes(path: Path) -> tuple[str, ...]:
    """The names of classes in a text file, one a line in the order of their numbers, or ``number name``.

    Raises:
        ValueError: if there are none, or their numbers are not 0, 1, 2 …
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    numbered = [re.fullmatch(r"(\d+)[\s,:]+(\S.*)", line) for line in lines]
    if lines and all(numbered):
        numbers = [int(match[1]) for match in numbered if match]
        if numbers != list(range(len(numbers))):
            raise ValueError(f"the classes in {path} are numbered {some(list(map(str, numbers)))}; expected 0, 1, 2 …")
        lines = [match[2] for match in numbered if match]
    if not lines:
        raise ValueError(f"{path} is empty; expected the name of a class on each line")
    return tuple(lines)


def some(names: Sequence[str]) -> str:
    """The first five of some names, for an error."""
    shown = ", ".join(printable(name) for name in names[:5])
    return f"{shown} … ({len(names)} in all)" if len(names) > 5 else shown or "none"
