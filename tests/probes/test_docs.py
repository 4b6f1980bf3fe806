"""docs/add-a-probe.md is true: its probe is one file."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support.coloured_images import class_folders
from tests.support.command_line import REPOSITORY, finished, process
from tests.support.markdown import blocks

PAGE = REPOSITORY / "docs" / "add-a-probe.md"


@pytest.mark.slow
def test_a_probe_is_one_file(tmp_path):
    for folder in ("tokenlens", "cli"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    [block] = blocks(PAGE, "python")
    assert not (tmp_path / block.path).exists()
    (tmp_path / block.path).write_text(block.text, encoding="utf-8")
    data = class_folders(tmp_path / "data")

    def run(*arguments: object) -> str:
        running = process("-m", "tokenlens_cli", *arguments, cwd=tmp_path, tree=tmp_path, TOKENLENS_CACHE=str(tmp_path))
        exit_code, stdout, stderr = finished(running)
        assert exit_code == 0, stderr
        return stdout

    listed = " ".join(run("list", "probes").split(" "))
    assert "nearest_mean  The class whose mean feature has the highest cosine" in listed
    found = json.loads(run("probe", "raw_pixels", "--task", "nearest_mean", "--data", data, "--json"))
    assert found["value"] == 1
    assert found["protocol"]["classifier"] == "cosine to the mean feature of each class"
