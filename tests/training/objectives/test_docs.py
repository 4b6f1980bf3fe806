"""docs/add-an-objective.md is true: its objective keeps the laws and trains."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.support.command_line import REPOSITORY, finished, process
from tests.support.markdown import blocks

PAGE = REPOSITORY / "docs" / "add-an-objective.md"


@pytest.mark.slow
def test_an_objective_is_one_file_and_its_case(tmp_path, photographs):
    for folder in ("tokenlens", "cli", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    added = blocks(PAGE, "python")
    assert [block.path.rpartition("/")[0] for block in added] == [
        "tokenlens/objectives",
        "tests/objectives",
        "tokenlens/recipes",
    ]
    for block in added:
        assert not (tmp_path / block.path).exists()
        (tmp_path / block.path).write_text(block.text, encoding="utf-8")
    running = process(
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/training/objectives/test_laws.py",
        "-k",
        "rotation",
        "-rA",
        cwd=tmp_path,
        tree=tmp_path,
    )
    exit_code, stdout, stderr = finished(running, 300)
    assert exit_code == 0, stdout + stderr
    assert len(re.findall(r"^PASSED .*rotation", stdout, re.MULTILINE)) > 12
    listed = finished(process("-m", "tokenlens_cli", "list", "objectives", "rotation", cwd=tmp_path, tree=tmp_path))
    assert listed[1].startswith("rotation  RotNet: CLS says")
    trained = process(
        "-m",
        "tokenlens_cli",
        "train",
        "tiny_rotation",
        "--data",
        photographs,
        "--specialize",
        "paper",
        "--set",
        "steps=2",
        "--set",
        "batch_size=4",
        "--set",
        "model_options.depth=2",
        "--set",
        "log_every=1",
        "--out",
        tmp_path / "run",
        "--json",
        cwd=tmp_path,
        tree=tmp_path,
    )
    exit_code, stdout, stderr = finished(trained)
    assert exit_code == 0, stderr
    assert json.loads(stdout)
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert "accuracy" in header
    assert len(rows) == 2
