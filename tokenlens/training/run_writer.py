"""Write the run folder of a training while it runs, one process at a time."""

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
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from tokenlens.storage.files import replacing, write_json
from tokenlens.storage.run_folder import MANIFEST, check_can_create, write_manifest
from tokenlens.training.recipe import Recipe
from tokenlens.training.trained_run import (
    CHANGEABLE_ON_RESUME,
    DIAGNOSTICS,
    LOCK,
    METRICS,
    RUN,
    SKIPPED,
    TrainedRun,
    read_run_table,
)


class RunWriter:
    """Writes the settings and tables of a training; see ``open_run_writer``.

    Attributes:
        path: the run folder.
        settings: content of run.json, empty before the first ``update``.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self.settings: dict[str, Any] = {}
        self._lock = lock
        self._files: dict[str, IO[str]] = {}

    @property
    def finished(self) -> bool:
        """Whether the training is complete, manifest included."""
        return self.settings.get("state") == "finished" and (self.path / MANIFEST).exists()

    def update(self, **changes: Any) -> None:
        """Change values of run.json, which is replaced as a whole."""
        self.settings |= changes
        write_json(self.path / RUN, self.settings, durable=True)

    def truncate_tables(self, step: int) -> None:
        """Remove table rows after ``step`` steps: a killed training wrote them after its last checkpoint."""
        for name in (METRICS, DIAGNOSTICS, SKIPPED):
            _truncate(self.path / name, step)

    def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to a table; the first row of a new table gives its columns."""
        if not rows:
            return
        if name not in self._files:
            file = self.path / name
            has_header = file.exists() and file.stat().st_size > 0
            self._files[name] = file.open("a", encoding="utf-8", errors="backslashreplace", newline="")
            if not has_header:
                csv.writer(self._files[name], lineterminator="\n").writerow(rows[0])
        writer = csv.writer(self._files[name], lineterminator="\n")
        writer.writerows([_csv_value(value) for value in row.values()] for row in rows)
        self._files[name].flush()

    def flush_to_disk(self) -> None:
        """Flush the tables to disk, before a checkpoint that covers their steps is written."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def count_skipped_images(self) -> int:
        """Return how many images could not be read, each counted once."""
        return int(read_run_table(self.path / SKIPPED, ["step", "name", "reason"])["name"].nunique())

    def finish(self) -> None:
        """Release the folder and write its manifest."""
        self._release()
        write_manifest(self.path)

    def close(self) -> None:
        """Release the folder, and remove it if nothing was written."""
        self._release()
        if not self.settings:
            with suppress(OSError):
                self.path.rmdir()

    def _release(self) -> None:
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        self._files.clear()
        if not self._lock.closed:
            with suppress(OSError):
                (self.path / LOCK).unlink(missing_ok=True)
            self._lock.close()


def open_run_writer(path: Path, wanted: Mapping[str, Any], *, resume: bool, overwrite: bool) -> RunWriter:
    """Lock a run folder for a training, new or to be resumed.

    Args:
        path: the folder; created if missing.
        wanted: what identifies the training in run.json: ``recipe``, ``data``, ``start`` …
        resume: whether an existing run may be resumed.
        overwrite: remove an existing run.

    Returns:
        The writer. Its ``settings`` are those of the run to resume, empty for a new one.

    Raises:
        FileExistsError: if the folder holds something else, or a run that may not be resumed.
        ValueError: if another process is training in it, or it holds a run of another configuration.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} exists and is a file; choose another --out")
    others = [file for file in path.iterdir() if file.name != LOCK] if path.is_dir() else []
    if others and not (path / RUN).is_file():
        raise FileExistsError(f"{path} exists and is not the run folder of a training; choose another --out")
    check_can_create(path)
    path.mkdir(parents=True, exist_ok=True)
    writer = RunWriter(path, _lock(path))
    try:
        if others and overwrite:
            _empty(path)
        elif others:
            settings = TrainedRun.load(path).settings
            if not resume:
                raise FileExistsError(f"the run {path} exists; use --resume, --overwrite or another --out")
            _check_same_configuration(path, settings, wanted)
            writer.settings = settings
    except BaseException:
        writer.close()
        raise
    return writer


def _lock(path: Path) -> IO[str]:
    """Lock a folder; the operating system releases the lock however the process ends.

    A POSIX lock is not shared with child processes, which may outlive a killed training for a moment.
    """
    while True:
        lock = (path / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise ValueError(f"a training is already running in {path} ({owner}); choose another --out") from None
        except OSError:
            lock.close()
            raise
        with suppress(FileNotFoundError):
            if os.fstat(lock.fileno()).st_ino == (path / LOCK).stat().st_ino:
                break
        lock.close()  # another training finished and removed the file between our opening and locking it
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


def _check_same_configuration(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differences = []
    for name, value in json.loads(json.dumps(wanted)).items():
        before = found.get(name)
        if name == "recipe" and isinstance(before, dict):  # with the fields that older versions did not have
            before = json.loads(json.dumps(Recipe.from_dict(before).to_dict()))
        if isinstance(value, dict) and isinstance(before, dict):
            differences += [
                f"{name}.{key} is {before.get(key)!r} there and {value.get(key)!r} now"
                for key in sorted({*value, *before})
                if value.get(key) != before.get(key) and key not in CHANGEABLE_ON_RESUME
            ]
        elif value != before:
            differences.append(f"{name} is {before!r} there and {value!r} now")
    if differences:
        raise ValueError(
            f"{path} holds a training of another configuration: {'; '.join(differences)}. Choose another --out, or "
            "--overwrite to start over"
        )


def _truncate(file: Path, step: int) -> None:
    """Keep the complete rows of a table whose first column is at most ``step``."""
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


def _csv_value(value: Any) -> Any:
    """Return a missing value as an empty string, and text on one line."""
    if isinstance(value, str):
        return " ".join(value.split())
    return "" if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)) else value
