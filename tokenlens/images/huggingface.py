"""Images of Hugging Face data sets (``hfds/…``), read with the package ``datasets``.

docs/decisions/0005-our-own-readers-of-streams.md says why timm's readers are not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from tokenlens.images._optional import import_data_package
from tokenlens.images.decoding import describe_error
from tokenlens.images.files import RawImage
from tokenlens.storage.downloads import why_unreachable

DEFAULT_SPLITS = ("validation", "val", "test", "train")
"""If no split is named, the first of these that a data set has is used."""


class HuggingFaceImages:
    """The images of a Hugging Face data set, undecoded.

    Args:
        name: ``NAME`` or ``NAME:SPLIT``. The name is that of a data set on the Hub, a folder of images or data files,
            or a folder written by ``save_to_disk``.

    Raises:
        ValueError: if the package is missing, there is no such data set or split, or it has no column of images.
    """

    def __init__(self, name: str) -> None:
        datasets = import_data_package("datasets", "hfds/…")
        path, split = parse_name(name)
        dataset, self.split, self.splits = _load(datasets, path, split)
        columns = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        if not columns:
            raise ValueError(
                f"the data set {path!r} has no column of images, only {', '.join(dataset.features)}; cast one with "
                "dataset.cast_column(NAME, datasets.Image()), or store the files as a folder"
            )
        if "image" not in columns and len(columns) > 1:
            raise ValueError(
                f"the data set {path!r} has several columns of images ({', '.join(columns)}) and none is called image; "
                "rename the one to use: dataset.rename_column(NAME, 'image')"
            )
        self.column = "image" if "image" in columns else columns[0]
        self.dataset = dataset.cast_column(self.column, datasets.Image(decode=False))
        self.description = f"Hugging Face data set {path}, split {self.split}"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> RawImage:
        row = self.dataset[index][self.column]
        path = str((row or {}).get("path") or "")
        name = f"{self.split}[{index}] {Path(path).name}".rstrip()
        if row and row.get("bytes") is not None:
            return RawImage(name, row["bytes"])
        return RawImage.from_file(name, Path(path)) if path else RawImage(name, reason="no image in this row")


def parse_name(name: str) -> tuple[str, str]:
    """Split ``NAME:SPLIT`` into its parts; the split is "" if none is named, and may contain a slice.

    >>> parse_name("owner/name:train[:100]"), parse_name("owner/name")
    (('owner/name', 'train[:100]'), ('owner/name', ''))
    """
    found = re.fullmatch(r"(.+):([^:\[\]]+(?:\[[^\]]*\])?)", name)
    return (found[1], found[2]) if found else (name, "")


def _load(datasets: Any, path: str, split: str) -> tuple[Any, str, list[str]]:
    """Return the data set, the name of its split, and all splits that there are."""
    local = Path(path).expanduser()
    if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
        with _loading(path):
            saved = datasets.load_from_disk(str(local))
        if isinstance(saved, datasets.DatasetDict):
            split = _choose_split(path, split, list(saved))
            if split not in saved:
                raise ValueError(
                    f"{path!r} was saved to disk, where a split cannot be sliced: expected one of "
                    f"{', '.join(saved)}, got {split!r}"
                )
            return saved[split], split, list(saved)
        splits = [str(saved.split or "all")]
        return saved, _choose_split(path, split, splits), splits
    if local.exists():
        path = str(local)
    elif not constants.HF_HUB_OFFLINE:
        reason = why_unreachable(constants.ENDPOINT)
        if reason is not None:
            raise ValueError(
                f"there is no folder {path!r}, and {reason}; set HF_HUB_OFFLINE=1 to use the copy in the local cache, "
                "if there is one"
            )
    with _loading(path):
        splits = datasets.get_dataset_split_names(path)
    split = _choose_split(path, split, splits)
    with _loading(path):
        return datasets.load_dataset(path, split=split), split, list(splits)


@contextmanager
def _loading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"the data set {path!r} cannot be loaded: {describe_error(error)}") from error


def _choose_split(path: str, split: str, splits: Sequence[str]) -> str:
    if split and split.partition("[")[0] not in splits:  # datasets accepts slices: train[:100]
        raise ValueError(f"the data set {path!r} has no split {split!r}; available: {', '.join(splits)}")
    return split or next((name for name in DEFAULT_SPLITS if name in splits), splits[0])
