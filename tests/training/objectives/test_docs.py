"""docs/add-an-objective.md is true: its objective keeps the laws and trains."""

from __future__ import annotations

import inspect
import json

import pytest

from tests.support.command_line import REPOSITORY, tokenlens
from tests.support.markdown import add_files, blocks
from tests.training.objectives import test_laws
from tests.training.objectives._tiny import batch, built, case, views

PAGE = REPOSITORY / "docs" / "add-an-objective.md"
SMALL = ("steps=2", "batch_size=4", "log_every=1", "diagnose_every=0", "model_options.depth=2")


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Add the files of the page."""
    files = blocks(PAGE, "python")
    assert [block.path.rpartition("/")[0] for block in files] == [
        "tokenlens/training/objectives",
        "tests/training/objectives",
        "tokenlens/training/recipes",
    ]
    add_files(files, tmp_path / "added", monkeypatch)


def test_an_objective_is_one_file_and_its_case(added, tmp_path, photographs):
    options = case("rotation").options(tmp_path)

    def make(name, **how):
        return built(name, options, **how), batch(views(name, options))

    given = {"name": "rotation", "made": make, "chosen": lambda name: options}
    done = 0
    for law in (function for name, function in vars(test_laws).items() if name.startswith("test_")):
        # Beside the name of the objective a law has at most one other parametrization.
        names, cases = next((mark.args for mark in law.pytestmark if mark.args[0] != "name"), ((), [()]))
        for values in cases:
            more = {names: values} if isinstance(names, str) else dict(zip(names, values, strict=True))
            law(**{name: value for name, value in (given | more).items() if name in inspect.signature(law).parameters})
            done += 1
    assert done > 12
    assert tokenlens("list", "objectives", "rotation").stdout.startswith("rotation  RotNet: CLS predicts")
    settings = [word for setting in SMALL for word in ("--set", setting)]
    words = ("--data", photographs, "--specialize", "paper", *settings, "--out", tmp_path / "run", "--json")
    trained = tokenlens("train", "tiny_rotation", *words, "--no-report")
    assert trained.exit_code == 0, trained.stderr
    assert json.loads(trained.stdout)["state"] == "finished"
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert "accuracy" in header
    assert len(rows) == 2
