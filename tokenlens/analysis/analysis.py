"""The result of ``analyze`` and its run folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tokenlens.analysis.photographs import Photographs
from tokenlens.metrics import PATTERN, NamedArray
from tokenlens.storage.files import write_json
from tokenlens.storage.result import SETTINGS, Result, read_settings
from tokenlens.storage.run_folder import SCHEMA_VERSION, check_manifest
from tokenlens.storage.tables import COLUMNS, read_table, select_rows
from tokenlens.storage.wording import counted
from tokenlens.tokens import Site, TokenLayout

SITE_ORDER = [str(site) for site in Site]
SITE_ORDER.insert(SITE_ORDER.index(Site.ATTN_OUT), PATTERN)
"""All sites in the order in which tokens pass them, attention patterns included."""

KEY_COLUMNS = ("metric", "part", "block", "site", "group", "head")
"""The columns that identify a number in the table."""

NUMBERS = ("analysis.json", "table.csv", "arrays.safetensors")
"""The files that an analysis is loaded from; all others can be drawn again from them."""

_PER_IMAGE, _PER_IMAGE_ROWS, _PHOTOGRAPHS = "per_image", "per_image_rows", "photographs/"


@dataclass
class Analysis(Result):
    """The numbers of one model on one set of images.

    The run folder holds ``analysis.json`` (settings and provenance), ``table.csv``, ``arrays.safetensors`` (values per
    image, and arrays with the names of their dimensions), the figures and the page.

    Attributes:
        model: full name of the model.
        layout: its tokens and patch grid.
        blocks: number of blocks.
        table: a tidy frame, one row per number, with the columns of ``tokenlens.storage.tables.COLUMNS``. ``value`` is
            the mean over images, ``sd`` the standard deviation over images, ``n`` their number, ``ci_low`` and
            ``ci_high`` a 95 % interval. Numbers of the whole set of images have no ``sd``.
        arrays: per-channel and per-position arrays, by ``"metric/part"``.
        per_image: one row per kept image and one column per number that has a value for each image. The levels of the
            columns are ``KEY_COLUMNS``, with −1 for no block or head.
        provenance: how the numbers came about; JSON-able.
        not_applicable: metrics that do not apply to this model, with the reason.
        no_interval: metrics, or ``metric/part``, for which no interval covers, with the reason.
        photographs: the first images, small, with maps of their patches across norm1; None if norm1 was not observed.
    """

    kind: ClassVar[str] = "analysis"

    model: str
    layout: TokenLayout
    blocks: int
    table: pd.DataFrame
    arrays: dict[str, NamedArray]
    per_image: pd.DataFrame
    provenance: dict[str, Any]
    not_applicable: dict[str, str] = field(default_factory=dict)
    no_interval: dict[str, str] = field(default_factory=dict)
    photographs: Photographs | None = None

    @property
    def untrained(self) -> bool:
        """Whether the weights are random, which every figure and table then says."""
        return bool(self.provenance.get("untrained"))

    @property
    def images(self) -> int:
        """Number of images that were analyzed."""
        return int(self.provenance["images"]["count"])

    @cached_property
    def heads(self) -> int:
        """Number of attention heads per block; 0 if no number per head was computed."""
        heads = self.table["head"].dropna()
        return int(heads.max()) + 1 if len(heads) else 0

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics in the table."""
        return list(dict.fromkeys(self.table["metric"]))

    def select(self, metric: str, **filters: Any) -> pd.DataFrame:
        """Return the table's rows of one metric, e.g. ``select("cls_patch_cosine", site="norm1", block=3)``.

        Raises:
            LookupError: if the metric is not in the table, with the reason where it does not apply.
        """
        if metric not in self.metrics:
            reason = self.not_applicable.get(metric)
            because = f": {reason}" if reason else f"; it has {', '.join(self.metrics)}"
            raise LookupError(f"the analysis of {self.model} has no {metric!r}{because}")
        return select_rows(self.table, metric=metric, **filters)

    def _write(self, folder: Path) -> None:
        labels = {name: {"dims": list(array.dims), "unit": array.unit} for name, array in self.arrays.items()}
        settings = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "model": self.model,
            "blocks": self.blocks,
            "layout": asdict(self.layout),
            "not_applicable": self.not_applicable,
            "no_interval": self.no_interval,
            "arrays": labels,
            "provenance": self.provenance,
        }
        photographs = self.photographs
        if photographs is not None:
            settings["photographs"] = {name: list(getattr(photographs, name)) for name in ("names", "hashes", "blocks")}
        write_json(folder / SETTINGS[self.kind], settings)
        self.table.to_csv(folder / "table.csv", index=False)
        arrays = {name: np.ascontiguousarray(array.values) for name, array in self.arrays.items()}
        arrays[_PER_IMAGE] = np.ascontiguousarray(self.per_image.to_numpy(dtype=np.float32))
        arrays[_PER_IMAGE_ROWS] = self._rows_of_columns()
        if photographs is not None:
            arrays |= {f"{_PHOTOGRAPHS}{name}": array for name, array in photographs.to_arrays().items()}
        save_file(arrays, folder / "arrays.safetensors", metadata={"dims": json.dumps(labels)})

    def _rows_of_columns(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return for each column of ``per_image`` the row of the table that is its mean."""
        if self.per_image.shape[1] == 0:
            return np.zeros(0, dtype=np.int64)
        positions = pd.Series(np.arange(len(self.table)), index=pd.MultiIndex.from_frame(number_keys(self.table)))
        return positions.loc[self.per_image.columns].to_numpy(dtype=np.int64)

    @classmethod
    def _read(cls, folder: Path) -> Analysis:
        check_manifest(folder, NUMBERS)
        return read_numbers(folder)

    def __repr__(self) -> str:
        untrained = ", untrained" if self.untrained else ""
        return (
            f"Analysis({self.model}{untrained}: {counted(self.blocks, 'block')}, {counted(self.images, 'image')}, "
            f"{counted(len(self.table), 'number')} from {counted(len(self.metrics), 'metric')})"
        )


def read_numbers(folder: Path) -> Analysis:
    """Read the files of numbers of an analysis from a folder whose hashes were checked already.

    Raises:
        ValueError: if they are of another kind, damaged, or of a newer version of tokenlens.
    """
    settings = read_settings(folder, "analysis")
    table = read_table(folder / "table.csv").astype({"n": "int64"})[list(COLUMNS)]
    try:
        stored = load_file(folder / "arrays.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'arrays.safetensors'} cannot be read: {error}") from error
    per_image, rows = stored.pop(_PER_IMAGE), stored.pop(_PER_IMAGE_ROWS)
    keys = number_keys(table.iloc[rows])
    kept = {name: stored.pop(name) for name in list(stored) if name.startswith(_PHOTOGRAPHS)}
    kept = {name.removeprefix(_PHOTOGRAPHS): array for name, array in kept.items()}
    labels = settings["arrays"]
    return Analysis(
        model=settings["model"],
        layout=TokenLayout.from_dict(settings["layout"]),
        blocks=settings["blocks"],
        table=table,
        arrays={
            name: NamedArray(values, tuple(labels[name]["dims"]), labels[name]["unit"])
            for name, values in stored.items()
        },
        per_image=pd.DataFrame(
            per_image,
            index=pd.Index(settings["provenance"]["images"]["names"][: len(per_image)], name="image"),
            columns=pd.MultiIndex.from_frame(keys) if len(keys) else None,
        ),
        provenance=settings["provenance"],
        not_applicable=settings["not_applicable"],
        no_interval=settings.get("no_interval", {}),
        photographs=Photographs.from_arrays(settings["photographs"], kept) if kept else None,
    )


def number_keys(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that identify a row, with −1 for no block or head."""
    return table[list(KEY_COLUMNS)].fillna({"block": -1, "head": -1}).astype({"block": int, "head": int})
