"""The run folder of an analysis is written whole or not at all, loads as it was saved, and names what is wrong."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tokenlens
from tests.metrics._cases import images, model
from tests.support.run_folders import forge
from tokenlens.analysis.analysis import Analysis
from tokenlens.metrics import NamedArray
from tokenlens.storage.hashing import file_sha256
from tokenlens.storage.run_folder import MANIFEST, SCHEMA_VERSION, check_manifest, writing

WRITE_REPORT = "tokenlens.report.write_report"
FILES = {"analysis.json", "table.csv", "arrays.safetensors", MANIFEST}


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    """Drawing takes seconds, and what is drawn is not tested here."""
    monkeypatch.setattr(WRITE_REPORT, lambda result, folder: None)


@cache
def analysis(name: str = "registers", metrics: tuple[str, ...] | str = "all", keep_images: int = 4096) -> Analysis:
    chosen = metrics if isinstance(metrics, str) else list(metrics)
    return tokenlens.analyze(model(name), images(name), metrics=chosen, keep_images=keep_images)


def small() -> Analysis:
    return analysis(metrics=("token_norm", "cka"))


def comes_back(before: Analysis, folder: Path) -> Analysis:
    """Save and load an analysis, and check that nothing was lost."""
    before.save(folder)
    loaded = Analysis.load(folder)
    same(before, loaded)
    return loaded


def same(one: Analysis, two: Analysis) -> None:
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)
    pd.testing.assert_frame_equal(one.per_image, two.per_image, check_exact=True)
    assert one.arrays.keys() == two.arrays.keys()
    for name, array in one.arrays.items():
        other = two.arrays[name]
        assert (array.dims, array.unit, array.values.dtype) == (other.dims, other.unit, other.values.dtype)
        np.testing.assert_array_equal(array.values, other.values)
    for field in ("model", "layout", "blocks", "heads", "provenance", "not_applicable", "untrained", "images"):
        assert getattr(one, field) == getattr(two, field), field


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with its hash."""
    return {str(file.relative_to(folder)): file_sha256(file) for file in folder.rglob("*") if file.is_file()}


# -- saved and loaded


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("registers", "all"),
        ("no_cls", "all"),
        ("specialized", "all"),
        ("layer", ("token_norm",)),
        ("layer", ("cls_cls_cosine", "cka")),  # nothing per image
        ("specialized", ("weight_distance",)),
    ],
)
def test_it_loads_as_it_was_saved(name, metrics, tmp_path):
    comes_back(comes_back(analysis(name, metrics), tmp_path / "run"), tmp_path / "again")
    assert (tmp_path / "run" / "table.csv").read_bytes() == (tmp_path / "again" / "table.csv").read_bytes()


def test_one_image_and_fewer_kept_than_seen(tmp_path):
    comes_back(tokenlens.analyze(model("layer"), images("layer")[:1]), tmp_path / "one")
    loaded = comes_back(analysis("layer", ("token_norm",), keep_images=3), tmp_path / "few")
    assert list(loaded.per_image.index) == loaded.provenance["images"]["names"][:3]


def test_undefined_and_extreme_numbers_survive(tmp_path):
    before = small()
    table = before.table.copy()
    table.loc[0, ["value", "sd", "ci_low", "ci_high"]] = [1e-300, np.nan, -np.inf, np.inf]
    table.loc[1, "value"] = 0.1 + 0.2
    table.loc[2, "value"] = np.nan
    arrays = before.arrays | {"token_norm/scalar": NamedArray(np.array(3.0), (), "norm")}
    arrays["token_norm/odd"] = NamedArray(np.arange(6.0).reshape(2, 3)[:, ::2].T, ("a", "b"), "µ²")
    comes_back(replace(before, table=table, arrays=arrays), tmp_path / "run")


NAMES = ["vit_ψ_très_小さい", "<script>alert('x')</script>", 'a,"b"\n;c', "NA", "nan", "None", "  spaces  ", "=1+1"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_model_or_an_image(name, tmp_path):
    before = small()
    provenance = json.loads(json.dumps(before.provenance))
    provenance["images"]["names"] = [f"{name} {index}" for index in range(8)]
    provenance["images"]["skipped"] = [{"name": name, "reason": name}]
    # Linux allows names that are not Unicode; Python gives them as lone surrogates, which UTF-8 does not have.
    provenance["command"] = os.fsdecode(b"tokenlens analyze vit --images photos_\xe9\xff")
    per_image = before.per_image.set_axis(pd.Index(provenance["images"]["names"], name="image"))
    table = before.table.assign(model=name)
    comes_back(replace(before, model=name, table=table, provenance=provenance, per_image=per_image), tmp_path / "run")


def test_what_is_in_the_folder(tmp_path):
    mask = os.umask(0o027)
    try:
        small().save(tmp_path / "run")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o750
    assert set(tree(tmp_path / "run")) == FILES
    manifest = json.loads((tmp_path / "run" / MANIFEST).read_text())
    assert set(manifest["files"]) == FILES - {MANIFEST}
    settings = json.loads((tmp_path / "run" / "analysis.json").read_text())
    assert settings["schema_version"] == SCHEMA_VERSION
    assert settings["provenance"]["images"]["count"] == 8


# -- whole or not at all


def test_an_existing_run_is_not_overwritten(tmp_path):
    small().save(tmp_path / "run")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite"):
        analysis("layer", ("token_norm",)).save(tmp_path / "run")
    assert tree(tmp_path) == before


def test_an_existing_run_is_replaced_with_overwrite(tmp_path):
    small().save(tmp_path / "run")
    (tmp_path / "run" / "old.svg").write_text("of the old run")
    other = analysis("layer", ("token_norm",))
    other.save(tmp_path / "run", overwrite=True)
    same(other, Analysis.load(tmp_path / "run"))
    assert set(tree(tmp_path)) == {f"run/{name}" for name in FILES}


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_folders_and_files_are_never_overwritten(overwrite, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("something")
    before = tree(tmp_path)
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match="choose another"):
            small().save(tmp_path / name, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_an_empty_folder_is_taken_and_a_relative_path_made(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    comes_back(small(), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    comes_back(small(), Path("reports/one/run"))


ERRORS = [ValueError("no figure"), KeyboardInterrupt(), SystemExit(1), OSError(errno.ENOSPC, "No space left on device")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("existing", [False, True])
def test_nothing_is_left_of_a_run_that_fails(existing, error, tmp_path, monkeypatch):
    """The report comes last, when the numbers are on disk already."""
    if existing:
        small().save(tmp_path / "run")
    before = tree(tmp_path)
    seen = []

    def report(_analysis: Analysis, folder: Path) -> None:
        seen.append((set(tree(folder)), (tmp_path / "run").exists()))
        (folder / "figures").mkdir()
        (folder / "figures" / "half.svg").write_text("<svg")
        raise error

    monkeypatch.setattr(WRITE_REPORT, report)
    with pytest.raises(type(error)):
        analysis("layer", ("token_norm",)).save(tmp_path / "run", overwrite=True)
    assert seen == [(FILES - {MANIFEST}, existing)]  # no manifest yet, and the old run still in its place
    assert tree(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == ({"run"} if existing else set())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_at_the_very_last_step_brings_the_old_run_back(error, tmp_path, monkeypatch):
    small().save(tmp_path / "run")
    before, replace_file = tree(tmp_path), os.replace

    def fail_at_the_new_run(source: Path, target: Path) -> None:
        if ".unfinished" in str(source):
            raise error
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_new_run)
    with pytest.raises(type(error)):
        analysis("layer", ("token_norm",)).save(tmp_path / "run", overwrite=True)
    monkeypatch.undo()
    assert tree(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_the_report_is_in_the_manifest(tmp_path, monkeypatch):
    def report(_analysis: Analysis, folder: Path) -> None:
        (folder / "figures").mkdir()
        (folder / "figures" / "a.svg").write_text("<svg/>")

    monkeypatch.setattr(WRITE_REPORT, report)
    small().save(tmp_path / "run")
    assert "figures/a.svg" in json.loads((tmp_path / "run" / MANIFEST).read_text())["files"]
    check_manifest(tmp_path / "run")
    (tmp_path / "run" / "figures" / "a.svg").write_text("<svg onload=x/>")
    with pytest.raises(ValueError, match=r"figures/a\.svg was changed"):
        check_manifest(tmp_path / "run")
    Analysis.load(tmp_path / "run")  # the numbers are as they were


def test_two_runs_written_at_once_do_not_mix(tmp_path):
    with writing(tmp_path / "run") as one, writing(tmp_path / "run", overwrite=True) as two:
        assert one != two
        (one / "a").write_text("1")
        (two / "a").write_text("2")
    assert (tmp_path / "run" / "a").read_text() in "12"
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


# -- what is wrong with it


@pytest.mark.parametrize("file", sorted(FILES - {MANIFEST}))
def test_a_changed_or_missing_file_is_named(file, tmp_path):
    small().save(tmp_path / "run")
    path = tmp_path / "run" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for changed in (content, content[:-7]):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=f"{file} was changed"):
            Analysis.load(tmp_path / "run")
    path.unlink()
    with pytest.raises(ValueError, match=f"{file} is missing"):
        Analysis.load(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / MANIFEST).read_text())
    del manifest["files"][file]
    (tmp_path / "run" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=file):
        Analysis.load(tmp_path / "run")


@pytest.mark.parametrize("file", ["analysis.json", MANIFEST])
@pytest.mark.parametrize("version", ["99", '"2.0"', "null"])
def test_a_run_of_a_newer_version_says_so(version, file, tmp_path):
    small().save(tmp_path / "run")
    forge(tmp_path / "run", file, f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {version}')
    with pytest.raises(ValueError, match="newer tokenlens"):
        Analysis.load(tmp_path / "run")


@pytest.mark.parametrize("outside", ["../secret", "figures/../../secret", "/etc/hostname", "link"])
def test_a_manifest_or_a_link_that_climbs_out_is_refused(outside, tmp_path):
    small().save(tmp_path / "run")
    (tmp_path / "secret").write_text("not yours")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "secret")
    forge(tmp_path / "run", MANIFEST, '"table.csv"', f'"{outside}"')
    with pytest.raises(ValueError, match="outside the run folder"):
        Analysis.load(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1}', '{"files": {"a": 1}}', '{"files": []}'])
def test_a_damaged_manifest_is_named(text, tmp_path):
    small().save(tmp_path / "run")
    (tmp_path / "run" / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"MANIFEST\.json is damaged"):
        Analysis.load(tmp_path / "run")


def test_other_folders_and_kinds_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        Analysis.load(tmp_path / "nothing")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "table.csv").write_text("model\n")
    with pytest.raises(FileNotFoundError, match="not a finished run"):
        Analysis.load(tmp_path / "half")
    small().save(tmp_path / "run")
    forge(tmp_path / "run", "analysis.json", '"kind": "analysis"', '"kind": "comparison"')
    with pytest.raises(ValueError, match="'comparison'"):
        Analysis.load(tmp_path / "run")
