"""Images at scale: Hugging Face data sets (``hfds/…``) and webdataset shards (``wds/…``), named as timm names them.

They are read with the libraries themselves and not through ``timm.data.create_dataset``: its readers want labels, keep
no names, put the next image in the place of an unreadable one (hfds) or leave it out with a log line (wds), and share
the shards out among ranks in their own way. Here every image has its name and place, and what is skipped is counted.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from tokenlens.images.decoding import image_extensions, unreadable_reason
from tokenlens.images.items import Record
from tokenlens.storage.downloads import unreachable

SPLITS = ("validation", "val", "test", "train")
"""Which split of a data set is taken if none is named: the first of these that it has."""


class HfdsRecords:
    """The rows of a Hugging Face data set, undecoded.

    Args:
        name: ``NAME`` or ``NAME:SPLIT``. The name is one of the hub, a folder of images or data files, or a folder
            written by ``save_to_disk``.

    Raises:
        ValueError: if the package is missing, there is no such data set or split, or it has no column of images.
    """

    def __init__(self, name: str) -> None:
        datasets = _package("datasets", "hfds/…")
        path, split = path_and_split(name)
        dataset, self.split, self.splits = _load(datasets, path, split)
        columns = [column for column, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
        if not columns:
            raise ValueError(f"the data set {path!r} has no column of images, only {', '.join(dataset.features)}")
        self.column = "image" if "image" in columns else columns[0]
        self.dataset = dataset.cast_column(self.column, datasets.Image(decode=False))
        self.description = f"Hugging Face data set {path}, split {self.split}"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Record:
        row = self.dataset[position][self.column]
        path = str((row or {}).get("path") or "")
        name = f"{self.split}[{position}] {Path(path).name}".rstrip()
        if row and row.get("bytes") is not None:
            return Record(name, row["bytes"])
        return Record.of_file(name, Path(path)) if path else Record(name, reason="no image in this row")


def path_and_split(name: str) -> tuple[str, str]:
    """Both parts of ``NAME:SPLIT``; no split is "". The colon of a slice is none of the name.

    >>> path_and_split("owner/name:train[:100]"), path_and_split("owner/name")
    (('owner/name', 'train[:100]'), ('owner/name', ''))
    """
    found = re.fullmatch(r"(.+):([^:\[\]]+(?:\[[^\]]*\])?)", name)
    return (found[1], found[2]) if found else (name, "")


def _load(datasets: Any, path: str, split: str) -> tuple[Any, str, list[str]]:
    """The data set, which split it is, and which there are."""
    local = Path(path).expanduser()
    if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
        with _stated(path):
            saved = datasets.load_from_disk(str(local))
        if isinstance(saved, datasets.DatasetDict):
            split = _choose(path, split, list(saved))
            if split not in saved:
                raise ValueError(f"no slice can be taken of a data set saved to disk, such as {path!r}; got {split!r}")
            return saved[split], split, list(saved)
        splits = [str(saved.split or "all")]
        return saved, _choose(path, split, splits), splits
    if local.exists():
        path = str(local)
    elif not constants.HF_HUB_OFFLINE:
        reason = unreachable(constants.ENDPOINT)
        if reason is not None:
            raise ValueError(
                f"{path!r} is no folder on this machine, and {reason}; set HF_HUB_OFFLINE=1 to use what the local "
                "cache holds of it"
            )
    with _stated(path):
        splits = datasets.get_dataset_split_names(path)
    split = _choose(path, split, splits)
    with _stated(path):
        return datasets.load_dataset(path, split=split), split, list(splits)


@contextmanager
def _stated(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"the data set {path!r} cannot be loaded: {unreadable_reason(error)}") from error


def _choose(path: str, split: str, splits: Sequence[str]) -> str:
    if split and split.partition("[")[0] not in splits:  # datasets takes slices: train[:100]
        raise ValueError(f"the data set {path!r} has no split {split!r}; available: {', '.join(splits)}")
    return split or next((known for known in SPLITS if known in splits), splits[0])


class WdsRecords:
    """The images of webdataset shards, in the shards' order, undecoded.

    Args:
        pattern: path or address of shards with braces (``data/train-{000..009}.tar``), one shard, or a folder of them.

    Raises:
        ValueError: if the package or a shard is missing.
    """

    PREFERRED = ("jpg", "png", "webp", "jpeg")

    def __init__(self, pattern: str) -> None:
        wds = _package("webdataset", "wds/…")
        folder = Path(pattern).expanduser()
        if folder.is_dir():
            self.shards = [str(shard) for shard in sorted(folder.glob("*.tar"))]
            if not self.shards:
                raise ValueError(f"no webdataset shards in {folder}; looked for files that end in .tar")
        else:
            self.shards = list(wds.shardlists.expand_urls(str(folder) if pattern.startswith("~") else pattern))
        missing = [shard for shard in self.shards if ":" not in shard and not Path(shard).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"no webdataset shard at {missing[0]}{more}; expected a folder or NAME-{{00..09}}.tar")
        count = len(self.shards)
        self.description = f"webdataset {pattern}, {count} {'shard' if count == 1 else 'shards'}"

    def __iter__(self) -> Iterator[Record]:
        wds = _package("webdataset", "wds/…")
        for shard in self.shards:
            shown = shard.rsplit("/", 1)[-1]
            try:
                with wds.gopen(shard) as stream:
                    files = wds.tariterators.tar_file_expander([{"url": shard, "stream": stream}])
                    for sample in wds.tariterators.group_by_keys(files):
                        yield self._record(shown, sample)
            except Exception as error:  # a shard that breaks off: the rest of it is lost, and counted as one
                reason = str(error.args[0] if error.args else "").partition(" @ ")[0]  # then a memory address
                yield Record(shown, reason=f"the shard breaks off ({type(error).__name__}: {reason})")

    def _record(self, shard: str, sample: dict[str, Any]) -> Record:
        files = [key for key in sample if not key.startswith("__")]
        images = [key for key in files if f".{key.rsplit('.', 1)[-1].lower()}" in image_extensions()]
        image = next((key for key in self.PREFERRED if key in images), images[0] if images else None)
        name = f"{shard}/{sample['__key__']}"
        if image is None:
            return Record(name, reason=f"no image in this sample, only {', '.join(files) or 'nothing'}")
        return Record(f"{name}.{image}", sample[image])


def _package(name: str, form: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{form} needs the package {name}: pip install 'tokenlens-vit[data]'") from error
