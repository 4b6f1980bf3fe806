"""Labelled images in class folders, on disk or in a tar archive."""

# Shapes: N images.

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tokenlens.images.decoding import is_image_name
from tokenlens.images.files import ImageFiles, IndexedImages, find_images, preview_names, printable_name
from tokenlens.images.labelled.splits import SPLITS, Split, SplitImages, choose_split
from tokenlens.images.labelled.tar_images import TarImages
from tokenlens.images.labelled.tar_index import TarIndex, index_images
from tokenlens.images.layouts import check_classes
from tokenlens.images.packed_strings import PackedStrings
from tokenlens.storage.wording import counted


class FolderTree:
    """A folder on disk, without hidden subfolders, which are given by their paths relative to it, "" for itself."""

    def __init__(self, path: Path) -> None:
        self.path, self.description = path, f"folder {path}"

    def subfolders(self, folder: str) -> list[str]:
        """Return the names of a folder's direct subfolders, sorted."""
        with os.scandir(self.path / folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

    def has_images(self, folder: str) -> bool:
        """Return whether there are images directly in a folder."""
        with os.scandir(self.path / folder) as entries:
            return any(
                entry.is_file() and is_image_name(entry.name) and not entry.name.startswith(".") for entry in entries
            )

    def images(self, folder: str) -> tuple[IndexedImages, PackedStrings]:
        """Return all images in a folder and below, sorted, and their paths relative to it; ValueError if none."""
        found = find_images(self.path / folder)
        names = PackedStrings(found.names)
        return ImageFiles(found.folder, names, found.notes), names


class ArchiveTree:
    """A tar archive, with the interface of ``FolderTree``; only folders with images count."""

    def __init__(self, path: Path) -> None:
        self.path, self.description = path, f"archive {path}"
        self.index = index_images(path)

    def subfolders(self, folder: str) -> list[str]:
        """See ``FolderTree``."""
        return sorted({name.partition("/")[0] for name in self._find(folder).values() if "/" in name})

    def has_images(self, folder: str) -> bool:
        """See ``FolderTree``."""
        return any("/" not in name for name in self._find(folder).values())

    def images(self, folder: str) -> tuple[IndexedImages, PackedStrings]:
        """See ``FolderTree``."""
        found = self._find(folder)
        names, positions, index = PackedStrings(found.values()), list(found), self.index
        part = TarIndex(names, index.offsets[positions], index.sizes[positions], index.labels[positions])
        return TarImages([self.path], [part], prefix_names=False), names

    def _find(self, folder: str) -> dict[int, str]:
        """Return position in the index → path relative to ``folder``, of all images in it and below."""
        prefix = f"{folder}/" if folder else ""
        names = enumerate(self.index.names)
        return {position: name[len(prefix) :] for position, name in names if name.startswith(prefix)}


def open_tree(tree: FolderTree | ArchiveTree, split: Split) -> SplitImages:
    """Open a split of a tree of folders: the images in its folder, or all; without labels if no folder is a class.

    Raises:
        ValueError: if there are no images, a test folder but no training folder, images outside of class folders, class
            folders without images, classes that the training images do not have, or the parts of another layout.
    """
    root = ""
    while len(folders := tree.subfolders(root)) == 1 and folders[0] not in SPLITS and not tree.has_images(root):
        root = os.path.join(root, folders[0])  # archives often have one folder around everything
    splits = [name for name in folders if name in SPLITS]
    chosen, undivided = choose_split(splits, split, tree.description) if splits else ("all", True)
    folder = os.path.join(root, chosen) if splits else root
    train = os.path.join(root, "train") if splits else root
    images, names = tree.images(folder)
    classes = tuple(tree.subfolders(train))
    check_classes(tree.description, classes)
    description = f"{tree.description}, {chosen}," if splits else tree.description
    labels = _folder_labels(names, classes, description, require_all=folder == train)
    return SplitImages(tree.description, chosen, undivided, images, names, labels, classes)


def _folder_labels(
    names: PackedStrings, classes: tuple[str, ...], description: str, require_all: bool
) -> np.ndarray | None:
    """Return the class of each image by its folder, (N,) int64; None if there are no folders."""
    numbers = {name: number for number, name in enumerate(classes)}
    folders = [name.partition("/")[0] if "/" in name else None for name in names]
    outside = folders.count(None)
    if outside == len(names) and not classes:
        return None
    expected = f"expected one folder per class ({preview_names(classes)}), or only images and no folders"
    if outside:
        example = printable_name(names[folders.index(None)])
        raise ValueError(
            f"{description} has {counted(outside, 'image')} outside of class folders, e.g. {example}; {expected}"
        )
    found = {name for name in folders if name is not None}
    unknown: Sequence[str] = sorted(found - set(classes))
    if unknown:
        raise ValueError(
            f"{description} has classes that the training images do not have: {preview_names(unknown)}; expected some "
            f"of {preview_names(classes)}"
        )
    empty = sorted(set(classes) - found)
    if empty and require_all:
        raise ValueError(f"{description} has folders without images: {preview_names(empty)}; {expected}")
    return np.array([numbers[name] for name in folders if name is not None], dtype=np.int64)
