"""The run folder of a training: what it computes, how far it is, and everything that is needed to repeat it.

``run.json`` says all of it, ``metrics.csv`` has a row for every so many steps, ``diagnostics.csv`` the cheap
diagnostics of a fixed batch, ``skipped.csv`` the images that could not be read, ``checkpoints/`` the last two states,
``config.json`` and ``model.safetensors`` the model in timm's format. ``MANIFEST.json`` is written last: with it the run
is finished.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import pandas as pd
from torch import nn

from tokenlens.models.loading import load_model
from tokenlens.storage.files import replacing, write_json
from tokenlens.storage.result import SETTINGS, Result, read_settings
from tokenlens.storage.run_folder import MANIFEST, write_manifest
from tokenlens.storage.tables import COLUMNS, TEXT_COLUMNS, read_table
from tokenlens.training.checkpoints import checkpoints, step_of
from tokenlens.training.recipe import Recipe

RUN = SETTINGS["training"]
LOCK = "running.lock"
CHECKPOINTS = "checkpoints"
TABLES = ("metrics.csv", "diagnostics.csv", "skipped.csv")
FREE = ("workers", "log_every", "checkpoint_minutes", "source", "given")
"""What may be another when a training goes on: no weight depends on it. Data and weights are known by their SHA-256,
wherever they are."""


@dataclass(frozen=True)
class TrainedRun(Result):
    """A training's run folder, finished or not.

    Args:
        path: of the folder.
        settings: what ``run.json`` says.
    """

    kind: ClassVar[str] = "training"

    path: Path
    settings: dict[str, Any]

    @classmethod
    def _read(cls, folder: Path) -> TrainedRun:
        return cls(folder, read_settings(folder, cls.kind))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False, report: bool = True) -> Path:
        """Copy the run folder, or draw its figures and page again where ``path`` is the run folder itself."""
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
    def table(self) -> pd.DataFrame:  # type: ignore[override]
        """The same as ``metrics``."""
        return self.metrics

    @property
    def provenance(self) -> dict[str, Any]:  # type: ignore[override]
        """The same as ``settings``."""
        return self.settings

    @cached_property
    def recipe(self) -> Recipe:
        """What was trained, and how."""
        return Recipe.from_dict(self.settings["recipe"])

    @property
    def state(self) -> str:
        """``"running"`` (or killed while it was), ``"stopped"``, ``"failed: …"`` or ``"finished"``."""
        return str(self.settings["state"])

    @property
    def finished(self) -> bool:
        """Whether all of its steps were done."""
        return self.state == "finished"

    @property
    def step(self) -> int:
        """Steps that are done and kept."""
        return int(self.settings["step"])

    @property
    def metrics(self) -> pd.DataFrame:
        """A row for every so many steps: ``step`` (how many were done), ``epoch``, the losses (means over the steps
        since the row before), ``lr``, ``weight_decay``, ``grad_norm`` (before clipping), ``images_per_second``."""
        table = _table(self.path / "metrics.csv", ["step", "epoch", "loss"])
        return table.astype({name: "int64" if name == "step" else "float64" for name in table})

    @property
    def diagnostics(self) -> pd.DataFrame:
        """The columns of an analysis' table for the fixed batch, after ``step`` steps."""
        table = _table(self.path / "diagnostics.csv", ["step", *COLUMNS])
        kinds = dict.fromkeys(("step", "n"), "int64") | dict.fromkeys(("value", "sd", "ci_low", "ci_high"), "float64")
        return table.astype(kinds | {"block": "Int64", "head": "Int64"})

    @property
    def skipped(self) -> pd.DataFrame:
        """Each time that an image could not be read: ``step``, ``name``, ``reason``."""
        return _table(self.path / "skipped.csv", ["step", "name", "reason"]).astype({"step": "int64"})

    def model(self) -> nn.Module:
        """The model at the end, or at the last clean stop, in eval mode on the CPU.

        Raises:
            ValueError: if none was written yet.
        """
        return load_model(f"local-dir:{self.path}", device="cpu").module

    def __repr__(self) -> str:
        done = f"{self.step} of {self.settings['steps']} steps"
        return f"TrainedRun({self.path}: {self.settings['name']}, seed {self.settings['seed']}, {done}, {self.state})"


def _table(file: Path, columns: list[str]) -> pd.DataFrame:
    """Read a table of a training; an empty one with ``columns`` where there is none yet."""
    if not file.exists():
        return pd.DataFrame(columns=columns)
    return read_table(file, texts=(*TEXT_COLUMNS, "name", "reason"))


class RunFolder:
    """The folder while a training writes to it; one process at a time."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self.settings: dict[str, Any] = {}
        self._lock = lock
        self._files: dict[str, IO[str]] = {}

    @property
    def finished(self) -> bool:
        """Whether the training is, and nothing is left to do."""
        return self.settings.get("state") == "finished" and (self.path / MANIFEST).exists()

    @property
    def checkpoints(self) -> Path:
        """Where the states are."""
        return self.path / CHECKPOINTS

    def say(self, **changes: Any) -> None:
        """Change what run.json says, at once and as a whole."""
        self.settings |= changes
        write_json(self.path / RUN, self.settings, durable=True)

    def go_on_from(self, step: int) -> None:
        """Cut from the tables what a killed training wrote after ``step`` steps, to be written again."""
        for name in TABLES:
            _cut(self.path / name, step)

    def add(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to a table; the first row of a new one gives its columns."""
        if not rows:
            return
        if name not in self._files:
            file = self.path / name
            header = file.exists() and file.stat().st_size > 0
            self._files[name] = file.open("a", encoding="utf-8", errors="backslashreplace", newline="")
            if not header:
                csv.writer(self._files[name], lineterminator="\n").writerow(rows[0])
        writer = csv.writer(self._files[name], lineterminator="\n")
        writer.writerows([_plain(value) for value in row.values()] for row in rows)
        self._files[name].flush()

    def sync(self) -> None:
        """Bring the tables to the disk, before a checkpoint says that their steps are done."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def skipped_images(self) -> int:
        """How many images could not be read, each counted once."""
        return int(_table(self.path / "skipped.csv", ["step", "name", "reason"])["name"].nunique())

    def finish(self) -> None:
        """Write the manifest."""
        self._close_tables()
        self._release()
        write_manifest(self.path)

    def close(self) -> None:
        """Leave the folder to others; nothing is left of one that was never begun."""
        self._close_tables()
        self._release()
        if not self.settings:
            with suppress(OSError):
                self.path.rmdir()

    def _close_tables(self) -> None:
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        self._files.clear()

    def _release(self) -> None:
        if not self._lock.closed:
            with suppress(OSError):
                (self.path / LOCK).unlink(missing_ok=True)
            self._lock.close()


def open_run(path: Path, wanted: Mapping[str, Any], *, resume: bool, overwrite: bool) -> RunFolder:
    """Open a run folder for a training, and see whether it has begun there already.

    Args:
        wanted: what run.json has to say of the training: ``recipe``, ``data``, ``start`` …
        resume: go on with an unfinished one.
        overwrite: remove what is there.

    Returns:
        The folder. Its ``settings`` are those of the training that goes on, or empty for a new one.

    Raises:
        FileExistsError: if the folder holds something else, or a training that must not go on.
        ValueError: if another training runs in it, or it is a training of another configuration.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} exists and is a file; choose another --out")
    others = [file for file in path.iterdir() if file.name != LOCK] if path.is_dir() else []
    if others and not (path / RUN).is_file():
        raise FileExistsError(f"{path} exists and is not the run folder of a training; choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path, _locked(path))
    try:
        if others and overwrite:
            _empty(path)
        elif others:
            settings = TrainedRun.load(path).settings
            if not resume:
                raise FileExistsError(f"the run {path} exists; use --resume, --overwrite or another --out")
            _check_same(path, settings, wanted)
            folder.settings = settings
    except BaseException:
        folder.close()
        raise
    return folder


def _locked(path: Path) -> IO[str]:
    """The folder's lock, which the system takes away from a process that ends, however it ends.

    A POSIX lock is not shared with child processes, which may live on for a moment when a training is killed.
    """
    while True:
        lock = (path / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            who = lock.read().strip() or "another process"
            lock.close()
            raise ValueError(f"a training runs in {path} already ({who}); choose another --out") from None
        except OSError:
            lock.close()
            raise
        with suppress(FileNotFoundError):
            if os.fstat(lock.fileno()).st_ino == (path / LOCK).stat().st_ino:
                break
        lock.close()  # somebody finished and removed it between our opening and locking
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def _empty(path: Path) -> None:
    for file in path.iterdir():
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        elif file.name != LOCK:
            file.unlink()


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differences = []
    for name, value in json.loads(json.dumps(wanted)).items():
        before = found.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            differences += [
                f"{name}.{key} is {before.get(key)!r} there and {value.get(key)!r} now"
                for key in sorted({*value, *before})
                if value.get(key) != before.get(key) and key not in FREE
            ]
        elif value != before:
            differences.append(f"{name} is {before!r} there and {value!r} now")
    if differences:
        raise ValueError(
            f"{path} holds a training of another configuration: {'; '.join(differences)}. Choose another --out, or "
            "--overwrite to begin anew"
        )


def _cut(file: Path, step: int) -> None:
    """Keep of a table the complete rows whose first column is at most ``step``."""
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    kept = [row for number, row in enumerate(rows) if number == 0 or int(row[0]) <= step]
    if len(kept) < 2:
        file.unlink()
        return
    with replacing(file, durable=True) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows(kept)


def _plain(value: Any) -> Any:
    """As CSV has it: nothing for what is missing, and a text on one line."""
    if isinstance(value, str):
        return " ".join(value.split())
    return "" if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)) else value


def last_good(path: Path) -> str:
    """Where a training that failed can go on from, as a part of a sentence."""
    found = checkpoints(path / CHECKPOINTS)
    if not found:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {found[0]}, after {step_of(found[0])} steps"


def told(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(str(error).split()) or type(error).__name__
