"""Images in a tree of folders, on disk or in a tar archive, and the classes that the folders say they are of."""

# Shapes: N images.

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from tokenlens.images.decoding import find_images, image_extensions
from tokenlens.images.items import Record, Records, printable
from tokenlens.images.labelled.shards import TarIndex, TarRecords, index_images
from tokenlens.images.labelled.splits import SPLITS, Split, SplitImages, choose_split, some
from tokenlens.images.packed_strings import Names


class ImageTree(Protocol):
    """Where images lie in folders. A place in it is a path relative to its root, "" for the root."""

    shown: str
    """What it is, for people."""

    def folders(self, place: str) -> list[str]:
        """Names of the folders right in a place, sorted."""

    def loose(self, place: str) -> bool:
        """Whether there are images right in a place."""

    def images(self, place: str) -> list[str]:
        """All images in a place and below, relative to it, sorted; ValueError if there is none."""

    def records(self, place: str) -> tuple[Records, Names]:
        """The same images, and their names."""


class FolderTree:
    """A folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.shown = path, f"folder {path}"

    def folders(self, place: str) -> list[str]:
        """See ``ImageTree``; hidden folders are left out."""
        with os.scandir(self.path / place) as entries:
            return sorted(one.name for one in entries if one.is_dir() and not one.name.startswith("."))

    def loose(self, place: str) -> bool:
        """See ``ImageTree``."""
        with os.scandir(self.path / place) as entries:
            return any(
                os.path.splitext(one.name)[1].lower() in image_extensions() and not one.name.startswith(".")
                for one in entries
                if one.is_file()
            )

    def images(self, place: str) -> list[str]:
        """See ``ImageTree``."""
        folder = self.path / place
        return [path.relative_to(folder).as_posix() for path in find_images(folder)]

    def records(self, place: str) -> tuple[Records, Names]:
        """See ``ImageTree``."""
        names = Names(self.images(place))
        return _FolderRecords(self.path / place, names), names


class _FolderRecords:
    """Image files below a folder; unlike FileRecords it keeps no Path for each (see ``Names``)."""

    def __init__(self, folder: Path, names: Names) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> Record:
        name = self.names[position]
        return Record.of_file(printable(name), self.folder / name)


class ArchiveTree:
    """A tar archive, of which only what holds images counts as a folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.shown = path, f"archive {path}"
        self.index = index_images(path)

    def _inside(self, place: str) -> list[int]:
        start = f"{place}/" if place else ""
        return [position for position, name in enumerate(self.index.names) if name.startswith(start)]

    def folders(self, place: str) -> list[str]:
        """See ``ImageTree``."""
        return sorted({name.partition("/")[0] for name in self.images(place) if "/" in name})

    def loose(self, place: str) -> bool:
        """See ``ImageTree``."""
        return any("/" not in name for name in self.images(place))

    def images(self, place: str) -> list[str]:
        """See ``ImageTree``."""
        skipped = len(place) + 1 if place else 0
        return [self.index.names[position][skipped:] for position in self._inside(place)]

    def records(self, place: str) -> tuple[Records, Names]:
        """See ``ImageTree``."""
        names, inside, index = Names(self.images(place)), self._inside(place), self.index
        part = TarIndex(names, index.offsets[inside], index.sizes[inside], index.labels[inside])
        return TarRecords([self.path], [part], named=False), names


def open_tree(tree: ImageTree, split: Split) -> SplitImages:
    """The images of a split: those of its folder, or all; without labels if they are in no class folders.

    Raises:
        ValueError: if there are no images, no folder for training beside one for the test, images outside of class
            folders, class folders without images, or classes that the training images do not have.
    """
    root = ""
    while len(folders := tree.folders(root)) == 1 and folders[0] not in SPLITS and not tree.loose(root):
        root = os.path.join(root, folders[0])  # one folder around all, as archives often have it
    splits = [name for name in folders if name in SPLITS]
    taken, whole = choose_split(splits, split, tree.shown) if splits else ("all", True)
    place = os.path.join(root, taken) if splits else root
    train = os.path.join(root, "train") if splits else root
    records, names = tree.records(place)
    classes = tuple(tree.folders(train))
    shown = f"{tree.shown}, {taken}," if splits else tree.shown
    labels = _labels(names, classes, shown, must_have_all=place == train)
    return SplitImages(tree.shown, taken, whole, records, names, labels, classes)


def _labels(names: Names, classes: tuple[str, ...], shown: str, must_have_all: bool) -> np.ndarray | None:
    """(N,) the class of each image by the folder it is in; None if there are no folders."""
    numbers = {name: number for number, name in enumerate(classes)}
    of_images = [name.partition("/")[0] if "/" in name else None for name in names]
    loose = of_images.count(None)
    if loose == len(names) and not classes:
        return None
    expected = f"expected a folder for each class ({some(classes)}), or only images and no folders"
    if loose:
        example = printable(names[of_images.index(None)])
        raise ValueError(f"{shown} has {loose} images outside of class folders, e.g. {example}; {expected}")
    found = {name for name in of_images if name is not None}
    unknown: Sequence[str] = sorted(found - set(classes))
    if unknown:
        raise ValueError(
            f"{shown} has classes that the training images do not have: {some(unknown)}; expected some of "
            f"{some(classes)}"
        )
    empty = sorted(set(classes) - found)
    if empty and must_have_all:
        raise ValueError(f"{shown} has folders without images: {some(empty)}; {expected}")
    return np.array([numbers[name] for name in of_images if name is not None], dtype=np.int64)
