"""The plan: which tasks are left, and how long they take."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.support.tiny_verification import tiny_scale
from tests.verification.conftest import SEEDS
from tokenlens.verification import plan


def test_more_seeds_can_be_added_but_another_configuration_is_refused(found, data, start, tmp_path):
    more = plan(tiny_scale(), data, seeds=SEEDS + 1, start=start, out=found.path)
    assert (more["state"] != "done").sum() == 2 * 5
    with pytest.raises(ValueError, match=r"scale\.recipe\.lr was 0.001 and is now 0.5"):
        plan(tiny_scale(recipe=replace(tiny_scale().recipe, lr=0.5)), data, start=start, out=found.path)
    with pytest.raises(ValueError, match=r"scale\.analyzed_images was 9 and is now 5"):
        plan(tiny_scale(analyzed_images=5), data, start=start, out=found.path)
    with pytest.raises(ValueError, match=r"start was .* and is now None"):
        plan(tiny_scale(), data, out=found.path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="is not a verification"):
        plan(tiny_scale(), data, out=tmp_path / "other")


def test_the_plan_learns_from_what_was_measured(found, data, start):
    tasks = plan(tiny_scale(), data, seeds=SEEDS + 1, start=start, out=found.path)
    left = tasks[tasks["state"] != "done"]
    assert set(left["basis"]) == {"measured"}
    seconds = [json.loads(file.read_text())["seconds"] for file in found.path.glob("runs/*/run.json")]
    assert left[left["what"] == "train"]["minutes"].iloc[0] == pytest.approx(np.median(seconds) / 60)
    guessed = plan(tiny_scale(), data, seeds=1, out=found.path.parent / "new")
    assert guessed["basis"].str.startswith("guess: nowhere").all()
    assert guessed["minutes"].iloc[0] == pytest.approx(6 * 8 / 100 / 60)
