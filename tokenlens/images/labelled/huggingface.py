"""Labelled images of Hugging Face data sets."""

# Shapes: N images.

from __future__ import annotations

from typing import Any

import numpy as np

from tokenlens.images.huggingface import HuggingFaceImages, parse_name
from tokenlens.images.labelled.splits import Split, SplitImages, check_labels, choose_split
from tokenlens.images.packed_strings import PackedStrings


def open_huggingface(name: str, split: Split) -> SplitImages:
    """Open a split of a Hugging Face data set.

    The labels are the column "label" if it holds classes or whole numbers, otherwise the first column of classes.

    Raises:
        ValueError: as ``HuggingFaceImages``; if there is no training split, or only some rows have a label.
    """
    path, chosen = parse_name(name)
    rows = HuggingFaceImages(name)
    if chosen or len(rows.splits) == 1:
        chosen, undivided = chosen or rows.split, True
    else:
        chosen, undivided = choose_split(rows.splits, split, f"the data set {path}")
        rows = rows if rows.split == chosen else HuggingFaceImages(f"{path}:{chosen}")
    source = f"Hugging Face data set {path}"
    names = PackedStrings(f"{chosen}[{index}]" for index in range(len(rows)))
    column, classes = _label_column(rows.dataset.features)
    labels = None if column is None else _read_labels(rows, column)
    if labels is None or (labels < 0).all():  # data sets on the Hub mark the secret labels of a test set by -1
        return SplitImages(source, chosen, undivided, rows, names, None, ())
    if not classes:  # a column of numbers: the training images determine the number of classes
        train = labels if undivided or chosen == "train" else _read_labels(HuggingFaceImages(f"{path}:train"), column)
        classes = tuple(map(str, range(int(train.max()) + 1)))
    check_labels(labels, names, classes, rows.description)
    return SplitImages(source, chosen, undivided, rows, names, labels, classes)


def _read_labels(rows: HuggingFaceImages, column: str | None) -> np.ndarray:
    """Return the numbers in a column, (N,) int64, -1 where there is none."""
    values = rows.dataset.select_columns([column])[:][column]
    return np.array([-1 if value is None else int(value) for value in values], dtype=np.int64)


def _label_column(features: Any) -> tuple[str | None, tuple[str, ...]]:
    """Return the name of the column of labels, if there is one, and the class names, if it has them."""
    import datasets

    classes = {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    if classes:
        column = "label" if "label" in classes else next(iter(classes))
        return column, tuple(classes[column])
    feature = features.get("label")
    return ("label" if isinstance(feature, datasets.Value) and "int" in feature.dtype else None), ()
