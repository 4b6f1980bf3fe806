"""The result of a training: its run folder, finished or not; docs/training.md describes the files."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from torch import nn

from tokenlens.models.loading import load_model
from tokenlens.storage.result import SETTINGS, Result, read_settings
from tokenlens.storage.run_folder import MANIFEST, write_manifest
from tokenlens.storage.tables import COLUMNS, TEXT_COLUMNS, read_table
from tokenlens.training.recipe import Recipe

RUN = SETTINGS["training"]
METRICS, DIAGNOSTICS, SKIPPED = "metrics.csv", "diagnostics.csv", "skipped.csv"
CHECKPOINTS = "checkpoints"
LOCK = "running.lock"

CHANGEABLE_ON_RESUME = ("workers", "log_every", "checkpoint_minutes", "source", "given", "notes")
"""Settings that may differ when a training is resumed: no weight depends on them. Data and weights are identified by
their SHA-256, not by their path."""


@dataclass(frozen=True)
class TrainedRun(Result):
    """A training's run folder, finished or not.

    Args:
        path: path of the folder.
        settings: content of ``run.json``.
    """

    kind: ClassVar[str] = "training"

    path: Path
    settings: dict[str, Any]

    @classmethod
    def _read(cls, folder: Path) -> TrainedRun:
        return cls(folder, read_settings(folder, cls.kind))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False, report: bool = True) -> Path:
        """Copy the run folder; where ``path`` is the run folder itself, draw its figures and page again."""
        if Path(path).resolve() != self.path.resolve():
            return super().save(path, overwrite, report)
        if report:
            self._write_report(self.path)
        if self.finished:
            write_manifest(self.path)
        return self.path

    def _write(self, folder: Path) -> None:
        shutil.copytree(self.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LOCK, MANIFEST))

    @property
    def table(self) -> pd.DataFrame:
        """The same as ``metrics``."""
        return self.metrics

    @property
    def provenance(self) -> dict[str, Any]:  # type: ignore[override]
        """The same as ``settings``."""
        return self.settings

    @cached_property
    def recipe(self) -> Recipe:
        """The complete recipe, with all changes."""
        return Recipe.from_dict(self.settings["recipe"])

    @property
    def state(self) -> str:
        """``"running"`` (also after a kill), ``"stopped"``, ``"failed: …"`` or ``"finished"``."""
        return str(self.settings["state"])

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.state == "finished"

    @property
    def step(self) -> int:
        """Number of steps that are done and saved."""
        return int(self.settings["step"])

    @property
    def metrics(self) -> pd.DataFrame:
        """One row every ``log_every`` steps.

        ``step`` (steps done), ``epoch``, the losses (means over the steps since the previous row), ``lr``,
        ``weight_decay``, ``grad_norm`` (before clipping) and ``images_per_second``.
        """
        table = read_run_table(self.path / METRICS, ["step", "epoch", "loss"])
        return table.astype({name: "int64" if name == "step" else "float64" for name in table})

    @property
    def diagnostics(self) -> pd.DataFrame:
        """The table of an analysis of the fixed batch, with the column ``step``: steps done at the time."""
        table = read_run_table(self.path / DIAGNOSTICS, ["step", *COLUMNS])
        kinds = dict.fromkeys(("step", "n"), "int64") | dict.fromkeys(("value", "sd", "ci_low", "ci_high"), "float64")
        return table.astype(kinds | {"block": "Int64", "head": "Int64"})

    @property
    def skipped(self) -> pd.DataFrame:
        """One row each time an image could not be read: ``step``, ``name``, ``reason``."""
        return read_run_table(self.path / SKIPPED, ["step", "name", "reason"]).astype({"step": "int64"})

    def model(self) -> nn.Module:
        """Load the model of the end, or of the last clean stop, in eval mode on the CPU.

        Raises:
            ValueError: if no model has been written yet.
        """
        return load_model(f"local-dir:{self.path}", device="cpu").module

    def __repr__(self) -> str:
        done = f"{self.step} of {self.settings['steps']} steps"
        return f"TrainedRun({self.path}: {self.settings['name']}, seed {self.settings['seed']}, {done}, {self.state})"


def read_run_table(file: Path, columns: list[str]) -> pd.DataFrame:
    """Read a table of a run folder; a missing file gives an empty table with ``columns``."""
    if not file.exists():
        return pd.DataFrame(columns=columns)
    return read_table(file, texts=(*TEXT_COLUMNS, "name", "reason"))
