"""What a probe found: a number with its interval and with everything that decided it, saved as a run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from tokenlens.storage.files import write_json
from tokenlens.storage.result import SETTINGS, Result, read_settings
from tokenlens.storage.run_folder import SCHEMA_VERSION, check_manifest
from tokenlens.storage.tables import read_table

COLUMNS = ("quantity", "of", "value", "ci_low", "ci_high", "n", "unit")
"""Of ``ProbeResult.table``."""

_FILES = ("result.json", "per_image.csv", "table.csv")


@dataclass
class ProbeResult(Result):
    """The number of one probe of one model on one data set.

    Attributes:
        value: a share in [0, 1]: top-1 accuracy on the test images, or mean IoU.
        ci_low: lower end of its 95 % interval, by drawing the test images anew (2000 times, seeded, percentiles). It
            says nothing about other training images or another seed.
        ci_high: upper end.
        n: how many test images.
        unit: what ``value`` is a share of, e.g. ``"top-1 accuracy"``.
        protocol: everything that decides the number, by name, in the order in which it is printed.
        per_image: a row for each test image, all that the interval was made of: ``image``, and ``label``,
            ``prediction`` and ``correct``, or how many pixels of each class are hit, labelled and predicted so.
        table: secondary numbers, tidy, with the columns of ``COLUMNS``.
        model: full name.
        task: name of the probe.
        untrained: whether the model's weights are random.
        provenance: data, skipped images, versions, command, commit, time; JSON-able.
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

    @property
    def headline(self) -> str:
        """The number in a sentence, with its interval and n."""
        untrained = " (untrained: random weights)" if self.untrained else ""
        return f"{self.model}{untrained}, {self.task}: {self.in_percent(self.value)} {self.unit} {self.interval_text}"

    @property
    def interval_text(self) -> str:
        """The interval and what it is of."""
        if math.isnan(self.ci_low):
            return f"(n = {self.n} test images, no interval)"
        return f"[{100 * self.ci_low:.1f}, {100 * self.ci_high:.1f}] (95 % over n = {self.n} test images)"

    @staticmethod
    def in_percent(share: float) -> str:
        """A share with one decimal.

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
        settings = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "model": self.model,
            "task": self.task,
            "untrained": self.untrained,
            "value": self.value,
            "ci_low": _number(self.ci_low),
            "ci_high": _number(self.ci_high),
            "n": self.n,
            "unit": self.unit,
            "protocol": self.protocol,
            "provenance": self.provenance,
        }
        write_json(folder / SETTINGS[self.kind], settings)
        self.per_image.to_csv(folder / "per_image.csv", index=False)
        self.table.to_csv(folder / "table.csv", index=False)

    @classmethod
    def _read(cls, folder: Path) -> ProbeResult:
        check_manifest(folder, _FILES)
        settings = read_settings(folder, cls.kind)
        settings = {name: value for name, value in settings.items() if name not in ("schema_version", "kind")}
        for name in ("ci_low", "ci_high"):
            settings[name] = math.nan if settings[name] is None else settings[name]
        return cls(
            **settings,
            per_image=read_table(folder / "per_image.csv", texts=("image", "label", "prediction"), counts=()),
            table=read_table(folder / "table.csv", texts=("quantity", "of", "unit"), counts=("n",)),
        )

    def __repr__(self) -> str:
        return f"ProbeResult({self.headline})"


def table_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of secondary numbers with the columns of ``COLUMNS``; what a row does not say is NaN or empty."""
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    kinds: dict[str, Any] = dict.fromkeys(("quantity", "of", "unit"), "str")
    kinds |= dict.fromkeys(("value", "ci_low", "ci_high"), "float64")
    return table.fillna({"of": "", "unit": ""}).astype(kinds | {"n": "Int64"})


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
