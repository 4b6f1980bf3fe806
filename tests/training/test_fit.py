"""Invalid input is refused before anything is written, and a report that fails does not lose the training."""

from __future__ import annotations

import sys

import pytest

from tests.support.tiny_training import tiny_recipe, train, train_and_report, write_colours
from tokenlens.storage.run_folder import check_manifest
from tokenlens.training.trained_run import TrainedRun


def test_an_objective_that_needs_labels_refuses_images_without(tmp_path):
    flat = write_colours(tmp_path / "data") / "train" / "red"
    with pytest.raises(ValueError, match="supervised needs labels"):
        train(tiny_recipe(), flat, tmp_path / "run")


def test_invalid_values_are_refused_before_anything_is_written(data, tmp_path):
    for changes, kind, message in (
        ({"model": "vit_tiny_patch16_244"}, LookupError, "vit_tiny_patch16_224"),
        ({"model_options": {"deepth": 2}}, ValueError, "deepth"),
        ({"objective": "supervise"}, LookupError, "Did you mean supervised"),
        ({"objective_options": {"mixupp": 1}}, LookupError, "Did you mean mixup"),
        ({"optimizer": "adamww"}, LookupError, "Did you mean adamw"),
        ({"specialization": "papper"}, LookupError, "Did you mean paper"),
        ({"precision": "16-mixed"}, ValueError, "CPU"),
        ({"batch_size": 6, "accumulate": 2}, ValueError, "batch_size=6"),
    ):
        with pytest.raises(kind, match=message):
            train(tiny_recipe(**changes), data, tmp_path / "run", device="cpu")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="available here"):
        train(tiny_recipe(), data, tmp_path / "run", device="gpu")


@pytest.mark.parametrize("package", ["lightning_fabric", "lightly"])
def test_a_missing_package_is_named_with_the_way_to_get_it(data, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"training needs {package}.*pip install 'tokenlens-vit\[train\]'"):
        train(tiny_recipe(), data, tmp_path / "run")


def test_a_report_that_cannot_be_drawn_does_not_lose_the_training(data, tmp_path, monkeypatch):
    def broken(self, folder):
        (folder / "report.html").write_text("half", encoding="utf-8")
        raise RuntimeError("no\nfont")

    monkeypatch.setattr(TrainedRun, "_write_report", broken)
    with pytest.warns(RuntimeWarning, match=r"the report could not be drawn \(no font\).*`tokenlens report"):
        run = train_and_report(tiny_recipe(steps=1), data, tmp_path / "run")
    assert run.finished
    assert run.settings["report_error"].startswith("the report could not be drawn (no font)")
    check_manifest(run.path)
    assert run.model() is not None
