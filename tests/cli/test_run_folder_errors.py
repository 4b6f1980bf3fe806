"""Bad run folders and places, as docs/error-messages.md describes them; see test_error_messages.py."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import timm

from tests.support.command_line import MODEL, TINY, finished, process, refused, tiny_analyze, tokenlens
from tokenlens.analysis.analysis import Analysis

QUICK = ("--no-report", "--metrics", "token_norm")


def nothing_in(folder: Path) -> None:
    assert not folder.exists() or not list(folder.iterdir())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "reports" / "run"


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "run"
    assert tiny_analyze(folder, "--no-report").exit_code == 0
    return folder


@pytest.fixture
def run(old_run, tmp_path):
    """A copy of a run folder, which the test may damage."""
    return Path(shutil.copytree(old_run, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# -- run folders


def test_place_that_cannot_be_written(tmp_path, monkeypatch):
    """a run folder under a file, in a place that cannot be written, or that is the current folder"""
    (tmp_path / "file").write_text("a file")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(import_module("tokenlens.analysis.analyze"), "load_model", None)  # is not reached
    refused(tiny_analyze(tmp_path / "file" / "run"), "cannot be written", "file is not a folder", "--out")
    refused(tiny_analyze(Path("/proc/run")), "/proc/run cannot be written")
    refused(tiny_analyze(tmp_path / ("x" * 240)), "File name too long")
    for folder in (".", "..", tmp_path / "work"):
        refused(tiny_analyze(folder), "the current folder or above it")
    refused(tokenlens("specialize", MODEL, "--no-pretrained", "--out", tmp_path / "file" / "m"), "file is not a folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "work"]


def test_existing_run(run, tmp_path, monkeypatch):
    """a run folder that exists"""
    before = contents(run)
    with monkeypatch.context() as patched:
        patched.setattr(import_module("tokenlens.analysis.analyze"), "load_model", None)  # is not reached
        refused(tiny_analyze(run), "--overwrite", "exists")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("years of work")
        refused(tiny_analyze(tmp_path / "other", "--overwrite"), "not a run folder")
        (tmp_path / "file").write_text("a file")
        refused(tiny_analyze(tmp_path / "file", "--overwrite"), "is a file")
    assert contents(run) == before
    assert tiny_analyze(run, *QUICK, "--overwrite").exit_code == 0
    assert Analysis.load(run).metrics == ["token_norm"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other", "run"]


def no_space(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "figure.svg")


def test_full_disk(run, out, tmp_path, monkeypatch):
    """a full disk"""
    before = contents(run)
    monkeypatch.setattr("tokenlens.report.write_report", no_space)
    refused(tiny_analyze(run, "--overwrite"), "No space left on device")
    refused(tiny_analyze(out), "No space left on device")
    assert contents(run) == before
    nothing_in(out.parent)
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "reports"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_really_full_disk(small_disk):
    """a full disk"""
    result = tiny_analyze(small_disk / "run", "--no-report")
    assert "no space left on device" in refused(result).lower()
    nothing_in(small_disk)


def test_figure_that_cannot_be_drawn(out, monkeypatch):
    """a figure that cannot be drawn"""

    def broken(*_args):
        raise TypeError("a bug in a figure")

    monkeypatch.setattr("tokenlens.report.write_report", broken)
    refused(tiny_analyze(out), "a bug in a figure", f"The numbers are saved in {out}", "tokenlens report")
    assert Analysis.load(out).images == 4
    assert [path.name for path in out.parent.iterdir()] == ["run"]


def test_interrupt_while_writing(run, out, monkeypatch):
    """Ctrl-C"""

    def interrupted(*_args):
        raise KeyboardInterrupt

    before = contents(run)
    monkeypatch.setattr("tokenlens.report.write_report", interrupted)
    for folder in (out, run):
        result = tiny_analyze(folder, "--overwrite")
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == "interrupted; nothing was written"
    assert contents(run) == before
    nothing_in(out.parent)
    assert tokenlens("report", run).exit_code == 130
    assert contents(run) == before


def test_interrupt_while_analyzing(tmp_path):
    """Ctrl-C"""
    arguments = ("analyze", MODEL, *TINY[:3], "--limit", 1_000_000, "--out", tmp_path / "reports" / "run")
    running = process("-m", "tokenlens_cli", *arguments, cwd=tmp_path)
    printed = []
    while "analyzing" not in (line := running.stderr.readline()):
        printed.append(line)
        assert line, "".join(printed)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    exit_code, stdout, stderr = finished(running, 30)
    assert exit_code == 130
    assert stdout == ""
    assert stderr.splitlines()[-1] == "interrupted; nothing was written"
    assert "Traceback" not in stderr
    nothing_in(tmp_path / "reports")


def change_settings(run: Path, **changes: object) -> None:
    file = run / "MANIFEST.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_newer_run(run):
    """a run folder of a newer tokenlens"""
    change_settings(run, schema_version=999)
    before = contents(run)
    refused(tokenlens("report", run), "schema version 999", "newer")
    assert contents(run) == before


def test_changed_run(run, tmp_path):
    """a run folder that was changed or is incomplete"""
    table = (run / "table.csv").read_text()
    (run / "table.csv").write_text(table + "one more row\n")
    refused(tokenlens("report", run), "table.csv")
    (run / "table.csv").unlink()
    refused(tokenlens("report", run), "table.csv is missing")
    (run / "MANIFEST.json").write_text("{")
    refused(tokenlens("report", run), "damaged")
    (run / "MANIFEST.json").unlink()
    refused(tokenlens("report", run), "not a finished run")
    refused(tokenlens("report", tmp_path / "nowhere"), "no run folder")


def test_manifest_that_climbs_out(run, tmp_path):
    """a manifest that names files outside its run folder"""
    (tmp_path / "outside.txt").write_text("secret")
    files = json.loads((run / "MANIFEST.json").read_text())["files"]
    change_settings(run, files={**files, "../outside.txt": {"bytes": 6, "sha256": "0" * 64}})
    refused(tokenlens("report", run), "outside the run folder")


def saved_model(folder: Path) -> Path:
    """A folder in timm's format, with weights."""
    folder.mkdir(parents=True)
    model = timm.create_model("test_vit", img_size=64, num_classes=0)
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def test_names_that_climb_out(tmp_path, monkeypatch):
    """`/`, `:` or `..` in a model's name"""
    saved_model(tmp_path / "models" / "mine")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    result = tokenlens("analyze", "local-dir:../models/mine", "--limit", 2, *QUICK)
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in Path("reports").iterdir()] == ["local-dir_.._models_mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "work"]


def test_html_in_names(tmp_path, photographs):
    """HTML in a model's or file's name"""
    attack = "<script>alert(1)<script>"
    model = saved_model(tmp_path / f"{attack}model")
    shutil.copytree(photographs, tmp_path / "images")
    (tmp_path / "images" / f"{attack}.jpg").write_text("not an image")
    out = tmp_path / "out"
    result = tokenlens("analyze", f"local-dir:{model}", "--images", tmp_path / "images", *QUICK[1:], "--out", out)
    assert result.exit_code == 0, result.stderr
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert "<script>alert" not in page
    drawn = [file.read_text(encoding="utf-8") for file in (out / "figures").glob("*.svg")]
    assert drawn
    assert not [text for text in drawn if "<script" in text]
