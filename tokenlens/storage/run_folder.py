"""Run folders: written whole or not at all, with a manifest of sizes and hashes.

``MANIFEST.json`` is written last: a folder without one is not a finished run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenlens.storage.files import umask, write_json
from tokenlens.storage.hashing import file_sha256

SCHEMA_VERSION = 1
MANIFEST = "MANIFEST.json"


def slug(text: str) -> str:
    """A name for a folder, made of any text.

    >>> slug("vit_small (untrained) · ../run")
    'vit_small_untrained_.._run'
    """
    return re.sub(r"[^\w.+-]+", "_", text).strip("._-")[:80] or "run"


def check_schema(settings: dict[str, Any], path: Path) -> None:
    """Raise ValueError unless this version of tokenlens can read settings or a manifest of the run ``path``."""
    version = settings.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} was written with schema version {version}, by a newer tokenlens; this one reads up to "
            f"{SCHEMA_VERSION}: pip install --upgrade tokenlens-vit"
        )


@contextmanager
def writing(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` to write into; on success it gets its manifest and takes the name ``path``.

    After an error or an interrupt nothing is left of it, and an existing run stays as it was. Where ``path`` is the
    current folder, its content is replaced, since a new folder would not be the current one.
    """
    path = Path(os.path.abspath(path))
    _check_replaceable(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent))
    try:
        folder.chmod(0o777 & ~umask())
        yield folder
        write_manifest(folder)
        if path.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".replaced", dir=path.parent))
            move = _move_content if path.samefile(Path.cwd()) else os.replace
            try:
                move(path, replaced / path.name)
                try:
                    move(folder, path)
                except BaseException:
                    move(replaced / path.name, path)
                    raise
            finally:
                shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.replace(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_content(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for file in list(source.iterdir()):
        os.replace(file, target / file.name)


def check_writable(path: Path, overwrite: bool) -> None:
    """Check that a new run may be written to ``path``, which is worth asking before an hour of work.

    Raises:
        FileExistsError: if something else is there, or it is the current folder.
        OSError: if the folder cannot be made.
    """
    if Path.cwd().is_relative_to(path.resolve()):
        raise FileExistsError(
            f"{path} is the current folder or above it, and would be replaced; run the command from another folder, or "
            "choose another --out"
        )
    _check_replaceable(path, overwrite)


def _check_replaceable(path: Path, overwrite: bool) -> None:
    check_can_create(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} exists and is a file; choose another --out")
    if not any(path.iterdir()):
        return
    if not (path / MANIFEST).exists():
        raise FileExistsError(f"{path} exists and is not a run folder (it has no {MANIFEST}); choose another --out")
    if not overwrite:
        raise FileExistsError(f"the run {path} exists; use --overwrite to replace it, or another --out")


def check_can_create(path: Path) -> None:
    """Check that ``path`` can be made, by making a temporary folder beside it; OSError with the reason otherwise."""
    above = next(parent for parent in Path(os.path.abspath(path)).parents if os.path.lexists(parent))
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {above} is not a folder; choose another --out")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".unfinished", dir=above))
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror} ({above}); choose another --out") from error


def check_manifest(path: Path, names: Collection[str] | None = None) -> dict[str, Any]:
    """Compare a run folder, or the named files of it, with its manifest.

    Raises:
        FileNotFoundError: if there is no finished run.
        ValueError: if the manifest is damaged or newer, or a file is missing or changed; says which.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run folder {path}")
    if not (path / MANIFEST).is_file():
        raise FileNotFoundError(f"{path} has no {MANIFEST}: it is not a finished run folder")
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged: {error}") from error
    check_schema(manifest, path)
    root = path.resolve()
    for name in files:
        if not (root / name).resolve().is_relative_to(root):
            raise ValueError(f"{path / MANIFEST} names a file outside the run folder: {name!r}")
    for name in files if names is None else names:
        if name not in files:
            raise ValueError(f"{path} is incomplete: its {MANIFEST} does not list {name}")
        file, (size, digest) = root / name, files[name]
        if not file.is_file():
            raise ValueError(f"{path} is incomplete: {name} is missing")
        if file.stat().st_size != size or file_sha256(file) != digest:
            raise ValueError(f"{path}: {name} was changed after the run was written (its SHA-256 does not match)")
    return manifest


def write_manifest(folder: Path) -> None:
    """Write the sizes and hashes of all other files of a folder into its manifest."""
    written = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / MANIFEST]
    for file in written:
        file.chmod(0o666 & ~umask())  # safetensors makes files that only their owner can read
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in written
    }
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": files})
