"""The commands and code of the README, run as far as possible without a download or an installation."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import REPOSITORY, tokenlens
from tests.support.markdown import blocks, commands
from tokenlens.analysis.analysis import Analysis

README = REPOSITORY / "README.md"
INSTALLED = ".venv/bin/"
SETUP = f"python3 -m venv .venv && .venv/bin/pip install . && {INSTALLED}"


def test_two_commands_come_first_and_set_everything_up():
    install, first, second, tests, *_ = commands(README)
    assert install == "pip install ."
    assert first == f"{SETUP}tokenlens analyze tokenlens_tiny"
    assert second == f"{INSTALLED}tokenlens analyze vit_base_patch16_224"
    assert tests == "make test"


def test_ci_runs_the_readmes_test_command():
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^(time )?make test$", script, re.MULTILINE)
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    assert subprocess.run(["bash", "-n", REPOSITORY / ".ci" / "run"]).returncode == 0


def test_make_test_installs_what_it_needs_and_runs_pytest(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    dry = subprocess.run(
        ["make", "--dry-run", "test", f"VENV={tmp_path / 'venv'}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
    )
    assert dry.returncode == 0, dry.stderr
    steps = [" -m venv ", " -m pip install ", "command -v chromium", " -m pytest"]
    positions = [dry.stdout.find(step) for step in steps]
    assert -1 not in positions
    assert positions == sorted(positions)


@pytest.mark.slow
def test_the_main_job_needs_no_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("uses the network"))
    command, *arguments = shlex.split(commands(README)[1].removeprefix(SETUP))
    assert command == "tokenlens"
    result = tokenlens(*arguments, env={"TOKENLENS_ANALYZE_LIMIT": "8"})
    assert result.exit_code == 0, result.stderr
    page = Path(result.stdout.splitlines()[-1].removeprefix("report: "))
    assert "untrained" not in result.stdout
    assert "<svg" in page.read_text(encoding="utf-8")
    assert Analysis.load(page.parent).images == 8


def test_every_other_command_is_understood(monkeypatch):
    def reached(*_args, **_options):
        raise LookupError("reached")

    for module, name in (
        ("tokenlens.analysis.analyze", "analyze"),
        ("tokenlens.analysis", "record"),
        ("tokenlens.interventions", "intervene"),
        ("tokenlens.models", "check"),
        ("tokenlens.comparison.compare", "compare"),
        ("tokenlens.storage.result", "check_manifest"),
        ("tokenlens.training.train", "train"),
        ("tokenlens.probes", "probe"),
        ("tokenlens.models", "create_meta_model"),
        ("tokenlens.verification.data", "find_data"),
    ):
        monkeypatch.setattr(importlib.import_module(module), name, reached)
    for line in commands(README):
        command, *arguments = shlex.split(line.removeprefix(SETUP).removeprefix(INSTALLED))
        if command != "tokenlens":
            assert line in ("pip install .", "make test")
            continue
        result = tokenlens(*arguments, env={"TOKENLENS_ANALYZE_OVERWRITE": "1"})
        assert result.stderr.splitlines()[-1] == "error: reached", line


def test_the_python_tour_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tour = "\n".join(block.text for block in blocks(README, "python"))
    exec(compile(tour, "README.md", "exec"), {})
    assert len(tour.strip().splitlines()) <= 7
    for picture in ("depth_profile.svg", "before_after.svg"):
        assert (tmp_path / picture).read_text(encoding="utf-8").count("<svg") == 1
    assert Analysis.load(tmp_path / "reports" / "first_look").images > 8


def test_it_is_short_and_starts_with_small_pictures():
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) < 900
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(pictures) >= 2
    assert max(text.index(picture) for picture in pictures) < text.index("```"), "pictures come first"
    assert all((REPOSITORY / picture).stat().st_size < 300_000 for picture in pictures)


def test_it_says_what_the_distribution_is_called():
    text = README.read_text(encoding="utf-8")
    assert "`tokenlens-vit`" in text
    assert "unrelated project" in text
