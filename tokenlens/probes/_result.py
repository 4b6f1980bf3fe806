"""What a probe found: a number with its interval and with everything that decided it, saved as a run folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tokenlens.run_folder import SCHEMA_VERSION, check_manifest, kind_of, writing

COLUMNS = ("quantity", "of", "value", "ci_low", "ci_high", "n", "unit")
"""Of ``ProbeResult.table``."""

_FILES = ("result.json", "per_image.csv", "table.csv")
_TEXTS = ("image", "label", "prediction")


@dataclass
class ProbeResult:
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

    def protocol_lines(self) -> list[str]:
        """``name: value``, a line each."""
        return [f"{name}: {_text(value)}" for name, value in self.protocol.items()]

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write a run folder of kind "probe", atomically: result.json, per_image.csv, table.csv and the manifest.

        Raises:
            FileExistsError: if there is a run already and ``overwrite`` is False, or something that is no run.
            OSError: if the disk is full or not writable; nothing is left behind then.
        """
        settings = {
            "schema_version": SCHEMA_VERSION,
            "kind": "probe",
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
        with writing(Path(path), overwrite) as folder:
            text = json.dumps(settings, indent=1, ensure_ascii=False, allow_nan=False)
            # A path that is not Unicode holds lone surrogates; the replacement is JSON's own way to write them.
            (folder / "result.json").write_text(text, encoding="utf-8", errors="backslashreplace")
            self.per_image.to_csv(folder / "per_image.csv", index=False)
            self.table.to_csv(folder / "table.csv", index=False)
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> ProbeResult:
        """Read a run folder, after checking its kind, schema version and hashes.

        Raises:
            FileNotFoundError: if there is no finished run at ``path``.
            ValueError: if it is of another kind, of a newer tokenlens, or was changed.
        """
        path = Path(path)
        found = kind_of(path)
        if found != "probe":
            raise ValueError(f"{path} is a run folder of kind {found!r}, expected 'probe'")
        check_manifest(path, _FILES)
        settings = json.loads((path / "result.json").read_text(encoding="utf-8"))
        version = settings.pop("schema_version")
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"{path} was written with schema version {version}, by a newer tokenlens; this one reads up to "
                f"{SCHEMA_VERSION}: pip install --upgrade tokenlens-vit"
            )
        settings.pop("kind")
        for name in ("ci_low", "ci_high"):
            settings[name] = math.nan if settings[name] is None else settings[name]
        return ProbeResult(
            **settings,
            per_image=_read(path / "per_image.csv", _TEXTS),
            table=_read(path / "table.csv", ("quantity", "of", "unit")),
        )

    def __repr__(self) -> str:
        return f"ProbeResult({self.headline})"

    def _repr_html_(self) -> str:
        untrained = " <strong>untrained (random weights)</strong>" if self.untrained else ""
        rows = "".join(
            f"<tr style='text-align:left'><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>"
            for name, value in self.protocol.items()
        )
        return (
            f"<div><strong>{escape(self.model)}</strong>{untrained}, {escape(self.task)}: "
            f"<strong>{self.in_percent(self.value)}</strong> {escape(self.unit)} {escape(self.interval_text)}"
            f"<details><summary>protocol</summary><table>{rows}</table></details></div>"
        )


def table_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of secondary numbers with the columns of ``COLUMNS``; what a row does not say is NaN or empty."""
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    kinds: dict[str, Any] = dict.fromkeys(("quantity", "of", "unit"), "str")
    kinds |= dict.fromkeys(("value", "ci_low", "ci_high"), "float64")
    return table.fillna({"of": "", "unit": ""}).astype(kinds | {"n": "Int64"})


def _read(file: Path, texts: tuple[str, ...]) -> pd.DataFrame:
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    for column in table.columns:
        if column in texts:
            continue
        if column == "n":
            table[column] = pd.array([int(text) if text else pd.NA for text in table[column]], dtype="Int64")
        elif all(text.lstrip("-").isdigit() for text in table[column]):
            table[column] = table[column].astype("int64")
        else:
            # Python's float gives back the very number that was written; pandas' own parser does so in some versions.
            table[column] = np.array([float(text or "nan") for text in table[column]], dtype=np.float64)
    return table


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
