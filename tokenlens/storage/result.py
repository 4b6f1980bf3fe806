"""The base class of all results: analyses, comparisons, interventions, trainings, probes and verifications."""

from __future__ import annotations

import importlib
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd

from tokenlens.storage.run_folder import MANIFEST, check_manifest, check_schema, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETTINGS = {
    "analysis": "analysis.json",
    "comparison": "comparison.json",
    "intervention": "intervention.json",
    "probe": "result.json",
    "training": "run.json",
    "verification": "verify.json",
}
"""For each kind of result the file of its run folder that says what the folder holds."""

_CLASSES = {
    "analysis": "tokenlens.analysis:Analysis",
    "comparison": "tokenlens.comparison:Comparison",
    "intervention": "tokenlens.interventions:Intervention",
    "probe": "tokenlens.probes:ProbeResult",
    "training": "tokenlens.training:TrainedRun",
    "verification": "tokenlens.verification:Verification",
}
_GROW = ("training", "verification")
"""Kinds whose folders can be read while still in progress."""


class Result(ABC):
    """A table of numbers, where they come from, and the run folder that holds both.

    Attributes:
        kind: one of ``SETTINGS``.
        table: a tidy frame, one row per number.
        provenance: how the numbers came about; JSON-able.
    """

    kind: ClassVar[str]
    table: pd.DataFrame
    provenance: dict[str, Any]

    def plot(self, figure: str, **options: Any) -> Figure:
        """Draw one of the figures of ``tokenlens list figures``; options go to its ``frame`` and ``plot``."""
        drawn: Figure = _look_up("tokenlens.figures:draw")(self, figure, **options)
        return drawn

    def save(self, path: str | os.PathLike[str], overwrite: bool = False, report: bool = True) -> Path:
        """Write a run folder, whole or not at all.

        Args:
            path: the folder.
            overwrite: replace a run that is there already.
            report: draw the figures and write the page, too.

        Raises:
            FileExistsError: if the folder exists and ``overwrite`` is False, or if it is not a run folder.
            OSError: if the disk is full or not writable; nothing is left behind then.
        """
        with writing(Path(path), overwrite) as folder:
            self._write(folder)
            if report:
                self._write_report(folder)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a run folder, after checking its kind, schema version and hashes.

        ``Result.load`` reads a folder of any kind.

        Raises:
            FileNotFoundError: if there is no finished run at ``path``.
            ValueError: if it is of another kind, was written by a newer version of tokenlens, or was changed. Figures
                and page do not count: they can be drawn again from the numbers.
        """
        folder = Path(path).expanduser()
        kind = kind_of(folder)
        if cls is not Result and kind != cls.kind:
            raise ValueError(f"{path} is a run folder of kind {kind!r}, expected {cls.kind!r}")
        result: Self = _look_up(_CLASSES[kind])._read(folder)
        return result

    def _write_report(self, folder: Path) -> None:
        _look_up("tokenlens.report:write_report")(self, folder)

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Write the numbers into an empty folder."""

    @classmethod
    @abstractmethod
    def _read(cls, folder: Path) -> Result:
        """Read what ``_write`` wrote."""

    def _repr_html_(self) -> str:
        return str(_look_up("tokenlens.report:summary_html")(self))


def kind_of(path: Path) -> str:
    """Return the kind of result that a run folder holds, one of ``SETTINGS``.

    Raises:
        FileNotFoundError: if there is no finished run at ``path``; trainings and verifications may be unfinished.
        ValueError: if its manifest is damaged or of a newer version of tokenlens.
    """
    for kind in _GROW:
        if (path / SETTINGS[kind]).is_file():
            return kind
    files = check_manifest(path, ())["files"]
    found = next((kind for kind, name in SETTINGS.items() if name in files), None)
    if found is None:
        raise ValueError(f"{path / MANIFEST} lists none of {', '.join(SETTINGS.values())}: not a run of tokenlens")
    return found


def read_settings(path: Path, kind: str) -> dict[str, Any]:
    """Read the settings of a run folder.

    Raises:
        FileNotFoundError: if the folder has none.
        ValueError: if they are damaged, of another kind, or of a newer version of tokenlens.
    """
    file = path / SETTINGS[kind]
    if not file.is_file():
        raise FileNotFoundError(f"{path} is not the run folder of a {kind}: there is no {file.name} in it")
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = settings.get("kind", kind)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if found != kind:
        raise ValueError(f"{path} is a run folder of kind {found!r}, expected {kind!r}")
    check_schema(settings, path)
    return settings


def _look_up(name: str) -> Any:
    """Import ``module:attribute`` from a later package at call time."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
