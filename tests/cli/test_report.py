"""``tokenlens report`` as a user runs it."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.command_line import MODEL, refused, tiny_analyze, tokenlens
from tokenlens.analysis import Analysis
from tokenlens.storage.result import Result


def test_report_draws_again_without_model_and_images(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert tiny_analyze(folder, "--metrics", "token_norm").exit_code == 0
    monkeypatch.setattr(import_module("tokenlens.analysis.analyze"), "load_model", None)
    page = folder / "report.html"
    before, table = page.read_text(encoding="utf-8"), (folder / "table.csv").read_bytes()
    page.unlink()
    next((folder / "figures").glob("*.svg")).write_text("edited")
    result = tokenlens("report", folder, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"kind": "analysis", "run": str(folder), "report": str(page)}
    assert page.read_text(encoding="utf-8") == before
    assert (folder / "table.csv").read_bytes() == table
    Analysis.load(folder)


def test_of_the_current_folder(tmp_path, monkeypatch):
    """Users stay in the folder: its files are new, and it is the same folder."""
    folder = tmp_path / "run"
    assert tiny_analyze(folder, "--no-report", "--metrics", "token_norm").exit_code == 0
    monkeypatch.chdir(folder)
    inode = folder.stat().st_ino
    result = tokenlens("report", ".")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "report: report.html\n"
    assert folder.stat().st_ino == inode
    assert Path("report.html").exists()
    assert Analysis.load(folder).model == MODEL
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    refused(tiny_analyze(Path("."), "--overwrite"), "is the current folder or above it")


@pytest.mark.parametrize("kind", ["analysis", "comparison", "probe", "training", "verification"])
def test_every_kind_of_run_gets_a_report(kind, tmp_path, monkeypatch):
    class Run:
        def save(self, path, overwrite):
            assert (path, overwrite) == (tmp_path, True)

    Run.kind = kind
    monkeypatch.setattr(Result, "load", lambda path: Run())
    assert json.loads(tokenlens("report", tmp_path, "--json").stdout)["kind"] == kind


def test_a_run_without_a_report_gets_one(tmp_path, monkeypatch):
    tiny_analyze(tmp_path / "run", "--no-report")
    page = tmp_path / "run" / "report.html"
    monkeypatch.setattr("tokenlens.report.write_report", lambda _, folder: (folder / "report.html").write_text("drawn"))
    result = tokenlens("report", tmp_path / "run")
    assert result.stdout == f"report: {page}\n"
    assert page.read_text() == "drawn"
    assert Analysis.load(tmp_path / "run").model == MODEL
