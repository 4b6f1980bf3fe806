"""Saving and loading a run: one folder, written whole or not at all, with a manifest of sizes and hashes.

Of an analysis ``analysis.json`` holds the schema version, provenance and settings, ``table.csv`` the tidy table,
``arrays.safetensors`` the per-image values and the per-channel and per-position arrays with their dimension names.
A comparison has ``comparison.json``, those three files of each analysis below ``runs/``, and its tables as CSV, which
are computed again when it is loaded. ``MANIFEST.json`` is written last: a folder without one is no finished run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tokenlens.analysis import COLUMNS, SERIES, Analysis
from tokenlens.metrics import NamedArray
from tokenlens.model_names import training_of
from tokenlens.tokens import TokenLayout

if TYPE_CHECKING:
    from tokenlens.comparison import Comparison

SCHEMA_VERSION = 1
MANIFEST = "MANIFEST.json"
NUMBERS = ("analysis.json", "table.csv", "arrays.safetensors")
"""The files that an analysis is loaded from; all others are drawn from them."""
SETTINGS = {
    "analysis": "analysis.json",
    "comparison": "comparison.json",
    "probe": "result.json",
    "verification": "verify.json",
}
"""The file that says what a run folder of each kind holds."""

_PER_IMAGE, _PER_IMAGE_ROWS = "per_image", "per_image_rows"


def save_analysis(
    analysis: Analysis,
    path: Path,
    overwrite: bool = False,
    report: Callable[[Analysis, Path], object] | None = None,
) -> Path:
    """Write an analysis as a run folder; ``report`` may add figures and a page before the manifest is made.

    Raises:
        FileExistsError: if the folder exists and ``overwrite`` is False, or if it is no run folder.
        OSError: if the disk is full or not writable; nothing is left behind then.
    """
    with writing(path, overwrite) as folder:
        _write_analysis(analysis, folder)
        if report is not None:
            report(analysis, folder)
    return path


def load_analysis(path: Path) -> Analysis:
    """Read a run folder.

    Raises:
        FileNotFoundError: if there is no finished run at ``path``.
        ValueError: if one of its three files of numbers is missing, was changed, or was written by a newer version of
            tokenlens. Figures and page do not count: they can be drawn again from the numbers.
    """
    _expect(path, "analysis")
    check_manifest(path, NUMBERS)
    return _read_analysis(path)


def save_comparison(
    comparison: Comparison,
    path: Path,
    overwrite: bool = False,
    report: Callable[[Comparison, Path], object] | None = None,
) -> Path:
    """Write a comparison as a run folder that holds its analyses, too; otherwise like ``save_analysis``.

    Raises:
        FileExistsError, OSError: as ``save_analysis`` does.
    """
    with writing(path, overwrite) as folder:
        members = {}
        for position, (label, analysis) in enumerate(comparison.analyses.items()):
            members[label] = f"runs/{position}_{slug(label)}"
            (folder / members[label]).mkdir(parents=True)
            _write_analysis(analysis, folder / members[label])
        settings = {
            "schema_version": SCHEMA_VERSION,
            "kind": "comparison",
            "labels": comparison.labels,
            "baseline": comparison.baseline,
            "pair": comparison.pair,
            "runs": members,
            "pairing": {label: asdict(pairing) for label, pairing in comparison.pairing.items()},
            "similarity_note": comparison.similarity_note,
            "provenance": comparison.provenance,
        }
        _write_json(settings, folder / SETTINGS["comparison"])
        for name in ("table", "differences", "summary", "similarity"):
            getattr(comparison, name).to_csv(folder / f"{name}.csv", index=False)
        if report is not None:
            report(comparison, folder)
    return path


def save_run(
    run: Analysis | Comparison,
    path: Path,
    overwrite: bool = False,
    report: Callable[[Any, Path], object] | None = None,
) -> Path:
    """``save_analysis`` or ``save_comparison``, by what ``run`` is."""
    if isinstance(run, Analysis):
        return save_analysis(run, path, overwrite, report)
    return save_comparison(run, path, overwrite, report)


def read_comparison(path: Path) -> tuple[dict[str, Any], dict[str, Analysis]]:
    """The settings of a comparison's run folder and its analyses by label; ``Comparison.load`` computes the rest.

    Raises:
        FileNotFoundError, ValueError: as ``load_analysis`` does.
    """
    _expect(path, "comparison")
    name = SETTINGS["comparison"]
    check_manifest(path, [name])
    settings = json.loads((path / name).read_text(encoding="utf-8"))
    _check_schema(settings, path, "comparison")
    members = settings["runs"]
    check_manifest(path, [f"{folder}/{file}" for folder in members.values() for file in NUMBERS])
    return settings, {label: _read_analysis(path / members[label]) for label in settings["labels"]}


def kind_of(path: Path) -> str:
    """What a run folder holds: one of ``SETTINGS`` or, finished or not, a ``"training"``.

    Raises:
        FileNotFoundError: if there is no finished run at ``path``.
        ValueError: if its manifest is damaged or of a newer version of tokenlens.
    """
    if training_of(path) is not None:
        return "training"
    files = check_manifest(path, ())["files"]
    return next((kind for kind in ("comparison", "probe", "verification") if SETTINGS[kind] in files), "analysis")


def slug(text: str) -> str:
    """A name for a folder, made of any text.

    >>> slug("vit_small (untrained) · ../run")
    'vit_small_untrained_.._run'
    """
    return re.sub(r"[^\w.+-]+", "_", text).strip("._-")[:80] or "run"


def _expect(path: Path, kind: str) -> None:
    found = kind_of(path)
    if found != kind:
        raise ValueError(f"{path} is a run folder of kind {found!r}, expected {kind!r}")


def _read_analysis(path: Path) -> Analysis:
    settings = json.loads((path / SETTINGS["analysis"]).read_text(encoding="utf-8"))
    _check_schema(settings, path, "analysis")
    table = _read_table(path / "table.csv")
    try:
        stored = load_file(path / "arrays.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{path / 'arrays.safetensors'} cannot be read: {error}") from error
    per_image, rows = stored.pop(_PER_IMAGE), stored.pop(_PER_IMAGE_ROWS)
    keys = table.iloc[rows][list(SERIES)].copy()
    for column in ("block", "head"):
        keys[column] = keys[column].fillna(-1).astype(int)
    arrays = {name: NamedArray(values, *_array_label(settings["arrays"][name])) for name, values in stored.items()}
    names = settings["provenance"]["images"]["names"][: len(per_image)]
    return Analysis(
        model=settings["model"],
        layout=TokenLayout(
            grid=(settings["layout"]["grid"][0], settings["layout"]["grid"][1]),
            prefix=tuple(settings["layout"]["prefix"]),
            patch_start=settings["layout"]["patch_start"],
        ),
        blocks=settings["blocks"],
        table=table,
        arrays=arrays,
        per_image=pd.DataFrame(
            per_image,
            index=pd.Index(names, name="image"),
            columns=pd.MultiIndex.from_frame(keys) if len(keys) else None,
        ),
        provenance=settings["provenance"],
        not_applicable=settings["not_applicable"],
    )


def _read_table(file: Path) -> pd.DataFrame:
    table = pd.read_csv(file, dtype=str, keep_default_na=False)[list(COLUMNS)]
    for column in ("value", "sd", "ci_low", "ci_high"):
        # Python's float gives back the very number that was written; pandas' own parser does so in some versions.
        table[column] = np.array([float(text or "nan") for text in table[column]], dtype=np.float64)
    for column in ("block", "head"):
        table[column] = pd.array([int(text) if text else pd.NA for text in table[column]], dtype="Int64")
    return table.astype({"n": "int64"})


def _array_label(label: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    return tuple(label["dims"]), label["unit"]


def _write_analysis(analysis: Analysis, folder: Path) -> None:
    labels = {name: {"dims": list(a.dims), "unit": a.unit} for name, a in analysis.arrays.items()}
    layout = analysis.layout
    settings = {
        "schema_version": SCHEMA_VERSION,
        "kind": "analysis",
        "model": analysis.model,
        "blocks": analysis.blocks,
        "layout": {"grid": list(layout.grid), "prefix": list(layout.prefix), "patch_start": layout.patch_start},
        "not_applicable": analysis.not_applicable,
        "arrays": labels,
        "provenance": analysis.provenance,
    }
    _write_json(settings, folder / SETTINGS["analysis"])
    analysis.table.to_csv(folder / "table.csv", index=False)
    arrays = {name: np.ascontiguousarray(array.values) for name, array in analysis.arrays.items()}
    arrays[_PER_IMAGE] = np.ascontiguousarray(analysis.per_image.to_numpy(dtype=np.float32))
    arrays[_PER_IMAGE_ROWS] = _series_rows(analysis)
    save_file(arrays, folder / "arrays.safetensors", metadata={"dims": json.dumps(labels)})


def _write_json(settings: dict[str, Any], file: Path) -> None:
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    # A path that is not Unicode holds lone surrogates; the replacement is JSON's own way to write them.
    file.write_text(text, encoding="utf-8", errors="backslashreplace")


def _series_rows(analysis: Analysis) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each column of ``per_image`` the row of the table that is its mean."""
    if analysis.per_image.shape[1] == 0:
        return np.zeros(0, dtype=np.int64)
    keys = analysis.table[list(SERIES)].copy()
    for column in ("block", "head"):
        keys[column] = keys[column].fillna(-1).astype(int)
    positions = pd.Series(np.arange(len(keys)), index=pd.MultiIndex.from_frame(keys))
    return positions.loc[analysis.per_image.columns].to_numpy(dtype=np.int64)


def _check_schema(settings: dict[str, Any], path: Path, kind: str | None = None) -> None:
    version = settings.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} was written with schema version {version}, by a newer tokenlens; this one reads up to "
            f"{SCHEMA_VERSION}: pip install --upgrade tokenlens-vit"
        )
    if kind is not None and settings.get("kind") != kind:
        raise ValueError(f"{path} is a run folder of kind {settings.get('kind')!r}, expected {kind!r}")


# -- any run folder


@contextmanager
def writing(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` to write into; on success it gets its manifest and takes the name ``path``.

    After an error or an interrupt nothing is left of it, and an existing run stays as it was.
    """
    path = Path(os.path.abspath(path))
    check_writable(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent))
    try:
        folder.chmod(0o777 & ~_umask())
        yield folder
        write_manifest(folder)
        if path.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".replaced", dir=path.parent))
            os.replace(path, replaced / path.name)
            try:
                os.replace(folder, path)
            except BaseException:
                os.replace(replaced / path.name, path)
                raise
            finally:
                shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.replace(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(path: Path, overwrite: bool) -> None:
    """FileExistsError if a run may not be written to ``path``; worth asking before an hour of work."""
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
    _check_schema(manifest, path)
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
        if file.stat().st_size != size or sha256_of(file) != digest:
            raise ValueError(f"{path}: {name} was changed after the run was written (its SHA-256 does not match)")
    return manifest


def write_manifest(folder: Path) -> None:
    """Write the sizes and hashes of all files of a folder into its manifest."""
    written = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    for file in written:
        file.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in written
    }
    text = json.dumps({"schema_version": SCHEMA_VERSION, "files": files}, indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def sha256_of(file: Path) -> str:
    """Hex SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
