"""The README's commands and code, run or checked as far as a test can without a download or an installation."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tokenlens.run_folder import load_analysis

from .command_line import REPOSITORY, tokenlens
from .markdown import blocks, commands

README = REPOSITORY / "README.md"
SETUP = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/"


def test_two_commands_come_first_and_set_everything_up():
    first, offline, tests, *_ = commands(README)
    assert first == f"{SETUP}tokenlens analyze vit_base_patch16_224"
    assert offline.startswith(f"{first} --no-pretrained ")
    assert tests == "make test"


def test_ci_runs_the_readmes_test_command():
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(rf"^(time )?{commands(README)[2]}$", script, re.MULTILINE)
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    assert subprocess.run(["bash", "-n", REPOSITORY / ".ci" / "run"]).returncode == 0


def test_make_test_installs_what_it_needs_and_runs_pytest(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    dry = subprocess.run(
        ["make", "--dry-run", "test", f"VENV={tmp_path / 'venv'}"], cwd=REPOSITORY, capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
    )
    assert dry.returncode == 0, dry.stderr
    steps = [" -m venv ", " -m pip install ", "command -v chromium", " -m pytest"]
    places = [dry.stdout.find(step) for step in steps]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.slow
def test_the_offline_command_does_the_main_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, *arguments = shlex.split(commands(README)[1].removeprefix(SETUP))
    assert command == "tokenlens"
    result = tokenlens(*arguments)
    assert result.exit_code == 0, result.stderr
    page = Path(result.stdout.splitlines()[-1].removeprefix("report: "))
    assert "untrained" in page.read_text(encoding="utf-8").lower()
    assert load_analysis(page.parent).images == 8


def test_every_other_command_is_understood(monkeypatch):
    def reached(*_args, **_options):
        raise LookupError("reached")

    monkeypatch.setattr("tokenlens.analysis.analyze", reached)
    loading = ("run_folder.load_analysis", "comparison.load_run", "comparison.compare", "recipes.train", "probes.probe")
    for loads in loading:
        monkeypatch.setattr(f"tokenlens.{loads}", reached)
    for line in commands(README):
        command, *arguments = shlex.split(line.removeprefix(SETUP))
        if command != "tokenlens":
            assert line == "make test"
            continue
        result = tokenlens(*arguments, env={"TOKENLENS_ANALYZE_OVERWRITE": "1"})
        if arguments[0] == "list":
            assert result.exit_code == 0
            assert result.stdout
        else:
            assert result.stderr.splitlines()[-1] == "error: reached", line


def test_the_python_tour_runs(tmp_path, monkeypatch, capsys):
    """With random weights, as the published ones are a download."""
    monkeypatch.chdir(tmp_path)
    tour = "\n".join(block.text for block in blocks(README, "python"))
    published = '"vit_base_patch16_224"'
    assert tour.count(published) == 4
    tour = tour.replace(f"{published}, pretrained=False", published)
    exec(compile(tour.replace(published, '"test_vit", pretrained=False'), "README.md", "exec"), {})
    assert "ci_low" in capsys.readouterr().out
    for picture in ("depth_profile.svg", "attention.svg"):
        assert (tmp_path / picture).read_text(encoding="utf-8").count("<svg") == 1
    assert load_analysis(tmp_path / "reports" / "first_look").images == 8


def test_it_says_what_the_distribution_is_called():
    text = README.read_text(encoding="utf-8")
    assert "`tokenlens-vit`" in text
    assert "unrelated project" in text
