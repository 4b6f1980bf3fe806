"""Labelled images of webdataset shards."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tokenlens.images.files import preview_names
from tokenlens.images.labelled.splits import (
    SPLITS,
    TEST_SPLITS,
    Split,
    SplitImages,
    check_labels,
    choose_split,
    read_class_names,
)
from tokenlens.images.labelled.tar_images import TarImages
from tokenlens.images.labelled.tar_index import index_samples
from tokenlens.images.webdataset import find_shards


def open_webdataset(pattern: str, split: Split) -> SplitImages:
    """Open a split of local webdataset shards: the shards whose folder or file name contains the split, or all.

    Raises:
        ValueError: if a shard is missing, damaged or not on this machine, only some of them name their split, or only
            some of their images have a label.
    """
    source = f"webdataset {pattern}"
    shards = _find_shards_by_split(pattern)
    if len(shards) == 1:
        chosen, undivided = next(iter(shards)), True
    else:
        chosen, undivided = choose_split(shards, split, source)
    images = _open_shards(shards[chosen])
    labels: np.ndarray | None = images.labels
    classes: tuple[str, ...] = ()
    if (images.labels < 0).all():
        labels = None
    else:
        train = images if chosen not in TEST_SPLITS or undivided else _open_shards(shards["train"])
        classes = _class_names(Path(pattern).expanduser(), images.paths[0].parent, int(train.labels.max()) + 1)
        try:
            check_labels(images.labels, images.names, classes, source)
        except ValueError as error:
            if not train.notes:
                raise
            raise ValueError(f"{error} ({'; '.join(train.notes)})") from error
    count = f"{len(images.paths)} {'shard' if len(images.paths) == 1 else 'shards'}"
    return SplitImages(source, f"{chosen or 'all'}, {count}", undivided, images, images.names, labels, classes)


def _find_shards_by_split(pattern: str) -> dict[str, list[str]]:
    """Return the shards by the split that they name, "" if none."""
    folder = Path(pattern).expanduser()
    split_folders = [name for name in SPLITS if any((folder / name).glob("*.tar"))]
    if split_folders:
        return {name: find_shards(str(folder / name)) for name in split_folders}
    found: dict[str, list[str]] = {}
    for shard in find_shards(pattern):
        if ":" in shard:
            raise ValueError(
                f"{shard} is not on this machine; training reads images in random order, so copy the shards to a "
                "local folder first"
            )
        parts = re.split(r"[^a-z]+", Path(shard).name.lower())  # as in imagenet1k-train-0000.tar
        found.setdefault(next((part for part in parts if part in SPLITS), ""), []).append(shard)
    if "" in found and len(found) > 1:
        with_split = preview_names([shards[0] for name, shards in found.items() if name])
        raise ValueError(
            f"some shards of {pattern} have their split in their names ({with_split}), others do not, e.g. "
            f"{found[''][0]}; expected it in all names or in none"
        )
    return found


def _open_shards(shards: list[str]) -> TarImages:
    paths = [Path(shard) for shard in shards]
    return TarImages(paths, [index_samples(path) for path in paths], prefix_names=True)


def _class_names(source: Path, folder: Path, count: int) -> tuple[str, ...]:
    """Return the names in classes.txt, beside the shards or above the folder of their split; otherwise numbers."""
    file = next((path for path in (folder / "classes.txt", source / "classes.txt") if path.is_file()), None)
    return read_class_names(file) if file is not None else tuple(map(str, range(count)))
