"""The result of a probe: a score with its interval and protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenlens.storage.files import write_json
from tokenlens.storage.result import SETTINGS, Result, read_settings
from tokenlens.storage.run_folder import SCHEMA_VERSION, check_manifest
from tokenlens.storage.tables import read_table

COLUMNS = ("quantity", "of", "value", "ci_low", "ci_high", "n", "unit")
"""Columns of ``ProbeResult.table``."""

LARGEST_HEAD = 64 * 2**20
"""Bytes of the largest head that is kept."""

_FILES = ("result.json", "per_image.csv", "table.csv")
_HEAD = "head.safetensors"


@dataclass
class ProbeResult(Result):
    """The score of one probe of one model on one data set.

    Attributes:
        value: a share in [0, 1]: top-1 accuracy on the test images, or mean IoU.
        ci_low: lower end of its 95 % interval over test images (bootstrap percentiles, 2000 seeded draws). It does not
            cover other training images or seeds.
        ci_high: upper end.
        n: number of test images.
        unit: what ``value`` is a share of, e.g. ``"top-1 accuracy"``.
        protocol: everything that determines the score, by name, in the order of printing.
        per_image: a row per test image with the data of the interval: ``label``, ``prediction`` and ``correct``, or the
            correct (``hit``), labelled and predicted pixels of each class.
        table: secondary scores, tidy, with the columns of ``COLUMNS``.
        model: full name.
        task: name of the probe.
        untrained: whether the model's weights are random.
        provenance: data, skipped images, versions, command, commit, time; JSON-able.
        head: the fitted head, which ``intervene`` applies again; empty if it is larger than ``LARGEST_HEAD``.
    """

    kind: ClassVar[str] = "probe"

    value: float
    ci_low: float
    ci_high: float
    n: int
    unit: str
    protocol: dict[str, Any]
    per_image: pd.DataFrame
    table: pd.DataFrame
    model: str = ""
    task: str = ""
    untrained: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def headline(self) -> str:
        """The score with its interval and n."""
        untrained = " (untrained: random weights)" if self.untrained else ""
        return f"{self.model}{untrained}, {self.task}: {self.in_percent(self.value)} {self.unit} {self.interval_text}"

    @property
    def interval_text(self) -> str:
        """The interval and n."""
        if math.isnan(self.ci_low):
            return f"(n = {self.n} test images, no interval)"
        return f"[{100 * self.ci_low:.1f}, {100 * self.ci_high:.1f}] (95 % over n = {self.n} test images)"

    @staticmethod
    def in_percent(share: float) -> str:
        """Return a share in per cent with one decimal.

        >>> ProbeResult.in_percent(0.7214)
        '72.1 %'
        """
        return "–" if math.isnan(share) else f"{100 * share:.1f} %"

    def protocol_rows(self) -> list[tuple[str, str]]:
        """Return the protocol as pairs of name and value."""
        return [(name, _text(value)) for name, value in self.protocol.items()]

    def protocol_lines(self) -> list[str]:
        """Return the protocol as lines of ``name: value``."""
        return [f"{name}: {value}" for name, value in self.protocol_rows()]

    def _write(self, folder: Path) -> None:
        names = ("model", "task", "untrained", "value", "ci_low", "ci_high", "n", "unit", "protocol", "provenance")
        settings = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            **{name: getattr(self, name) for name in names},
        }
        settings |= {name: None for name in ("ci_low", "ci_high") if math.isnan(settings[name])}
        write_json(folder / SETTINGS[self.kind], settings)
        if self.head:
            save_file(self.head, folder / _HEAD)
        self.per_image.to_csv(folder / "per_image.csv", index=False)
        self.table.to_csv(folder / "table.csv", index=False)

    @classmethod
    def _read(cls, folder: Path) -> ProbeResult:
        kept = _HEAD in check_manifest(folder, _FILES)["files"]
        if kept:
            check_manifest(folder, [_HEAD])
        settings = read_settings(folder, cls.kind)
        settings = {name: value for name, value in settings.items() if name not in ("schema_version", "kind")}
        for name in ("ci_low", "ci_high"):
            settings[name] = math.nan if settings[name] is None else settings[name]
        return cls(
            **settings,
            per_image=read_table(folder / "per_image.csv", texts=("image", "label", "prediction"), counts=()),
            table=read_table(folder / "table.csv", texts=("quantity", "of", "unit"), counts=("n",)),
            head=load_file(folder / _HEAD) if kept else {},
        )

    def __repr__(self) -> str:
        return f"ProbeResult({self.headline})"


def make_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows of secondary scores with the columns of ``COLUMNS``; missing values are NaN or empty."""
    table = pd.DataFrame([{"of": "", "unit": "", **row} for row in rows], columns=list(COLUMNS))
    kinds: dict[str, Any] = dict.fromkeys(("quantity", "of", "unit"), "str")
    kinds |= dict.fromkeys(("value", "ci_low", "ci_high"), "float64")
    return table.astype(kinds | {"n": "Int64"})


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
