"""Images whose label is stored beside each of them: webdataset shards and Hugging Face data sets."""

# Shapes: N images.

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from tokenlens.images.labelled.shards import TarRecords, index_samples
from tokenlens.images.labelled.splits import (
    SPLITS,
    TEST_SPLITS,
    Split,
    SplitImages,
    check_labels,
    choose_split,
    read_classes,
    some,
)
from tokenlens.images.packed_strings import Names
from tokenlens.images.streams import HfdsRecords, WdsRecords, path_and_split


def open_shards(pattern: str, split: Split) -> SplitImages:
    """The samples of local webdataset shards: of those whose folder or file name says the split, or of all.

    Raises:
        ValueError: if a shard is missing, damaged or not on this machine, only some of them say their split, or only
            some of their images have a label.
    """
    shown = f"webdataset {pattern}"
    of_splits = _shards(pattern)
    if len(of_splits) == 1:
        taken, whole = next(iter(of_splits)), True
    else:
        taken, whole = choose_split(of_splits, split, shown)
    records = _records(of_splits[taken])
    labels: np.ndarray | None = records.labels
    classes: tuple[str, ...] = ()
    if (records.labels < 0).all():
        labels = None
    else:
        train = records if taken not in TEST_SPLITS or whole else _records(of_splits["train"])
        classes = _class_names(Path(pattern).expanduser(), records.paths[0].parent, int(train.labels.max()) + 1)
        check_labels(records.labels, records.names, classes, shown)
    count = f"{len(records.paths)} {'shard' if len(records.paths) == 1 else 'shards'}"
    return SplitImages(shown, f"{taken or 'all'}, {count}", whole, records, records.names, labels, classes)


def _shards(pattern: str) -> dict[str, list[str]]:
    """The shards by the split that they say they are of, "" if none."""
    folder = Path(pattern).expanduser()
    below = [name for name in SPLITS if any((folder / name).glob("*.tar"))]
    if below:
        return {name: WdsRecords(str(folder / name)).shards for name in below}
    found: dict[str, list[str]] = {}
    for shard in WdsRecords(pattern).shards:
        if ":" in shard:
            raise ValueError(
                f"{shard} is not on this machine; training takes images in random order, so the shards of wds/… must "
                "be local files: copy them first"
            )
        words = re.split(r"[^a-z]+", Path(shard).name.lower())  # as in imagenet1k-train-0000.tar
        found.setdefault(next((word for word in words if word in SPLITS), ""), []).append(shard)
    if "" in found and len(found) > 1:
        said = [shards[0] for name, shards in found.items() if name]
        raise ValueError(
            f"some shards of {pattern} say their split in their names ({some(said)}), others do not, e.g. "
            f"{found[''][0]}"
        )
    return found


def _records(shards: list[str]) -> TarRecords:
    paths = [Path(shard) for shard in shards]
    return TarRecords(paths, [index_samples(path) for path in paths], named=True)


def _class_names(source: Path, folder: Path, count: int) -> tuple[str, ...]:
    """From classes.txt beside the shards or above their split's folder; otherwise the classes' numbers."""
    listed = next((path for path in (folder / "classes.txt", source / "classes.txt") if path.is_file()), None)
    return read_classes(listed) if listed is not None else tuple(map(str, range(count)))


def open_rows(name: str, split: Split) -> SplitImages:
    """The rows of a Hugging Face data set, with the label that a column of classes, or of whole numbers, gives.

    The column is "label", or the first one of classes.

    Raises:
        ValueError: as ``HfdsRecords`` does; if there is no split for training, or only some rows have a label.
    """
    path, chosen = path_and_split(name)
    rows = HfdsRecords(name)
    if chosen:
        taken, whole = chosen, True
    elif len(rows.splits) == 1:
        taken, whole = rows.split, True
    else:
        taken, whole = choose_split(rows.splits, split, f"the data set {path}")
        rows = rows if rows.split == taken else HfdsRecords(f"{path}:{taken}")
    names = Names(f"{taken}[{position}]" for position in range(len(rows)))
    column, classes = _label_column(rows.dataset.features)
    labels = None if column is None else _labels(rows, column)
    if labels is None or (labels < 0).all():  # −1: how data sets of the hub say that a test set's labels are kept back
        return SplitImages(f"Hugging Face data set {path}", taken, whole, rows, names, None, ())
    if not classes:  # a column of numbers: there are as many classes as the training images have
        train = labels if whole or taken == "train" else _labels(HfdsRecords(f"{path}:train"), column)
        classes = tuple(map(str, range(int(train.max()) + 1)))
    check_labels(labels, names, classes, rows.description)
    return SplitImages(f"Hugging Face data set {path}", taken, whole, rows, names, labels, classes)


def _labels(rows: HfdsRecords, column: str | None) -> np.ndarray:
    """(N,) the numbers in a column, −1 where there is none."""
    values = rows.dataset.select_columns([column])[:][column]
    return np.array([-1 if value is None else int(value) for value in values], dtype=np.int64)


def _label_column(features: Any) -> tuple[str | None, tuple[str, ...]]:
    import datasets

    classes = {name: kind.names for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    if classes:
        column = "label" if "label" in classes else next(iter(classes))
        return column, tuple(classes[column])
    kind = features.get("label")
    return ("label" if isinstance(kind, datasets.Value) and "int" in kind.dtype else None), ()
