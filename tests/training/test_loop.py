"""The steps of a training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_training import assert_same_weights, read_weights, tiny_recipe, train, write_colours
from tokenlens.training.loop import NonFiniteLossError
from tokenlens.training.objectives.supervised import Supervised
from tokenlens.training.trained_run import TrainedRun


def test_a_loss_of_nan_stops_before_it_spoils_the_weights(data, tmp_path, monkeypatch):
    forward = Supervised.forward

    def broken(self, batch, progress):
        losses = forward(self, batch, progress)
        return {**losses, "loss": losses["loss"] * (float("nan") if progress.step == 2 else 1)}

    monkeypatch.setattr(Supervised, "forward", broken)
    recipe = tiny_recipe(checkpoint_minutes=1e-9)
    with pytest.raises(NonFiniteLossError, match=r"step 3 of 4.*loss=nan.*step_00000002\.ckpt, after 2 steps"):
        train(recipe, data, tmp_path / "run")
    failed = TrainedRun.load(tmp_path / "run")
    assert failed.state.startswith("failed: NaN or infinity in step 3 of 4")
    assert failed.step == 2
    monkeypatch.undo()
    assert train(recipe, data, tmp_path / "run").finished
    assert_same_weights(TrainedRun.load(tmp_path / "run"), train(recipe, data, tmp_path / "whole"))


def test_accumulated_parts_are_one_batch(data, tmp_path):
    whole = train(tiny_recipe(clip_grad=0.5), data, tmp_path / "whole")
    parts = train(tiny_recipe(clip_grad=0.5, accumulate=4), data, tmp_path / "parts")
    left, right = read_weights(whole), read_weights(parts)
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)
    np.testing.assert_allclose(whole.metrics["grad_norm"], parts.metrics["grad_norm"], rtol=1e-4)


def test_bfloat16_comes_near(data, tmp_path):
    full = train(tiny_recipe(steps=1), data, tmp_path / "full")
    half = train(tiny_recipe(steps=1, precision="bf16-mixed"), data, tmp_path / "half")
    assert half.metrics["loss"][0] != full.metrics["loss"][0]
    assert half.metrics["loss"][0] == pytest.approx(full.metrics["loss"][0], rel=0.02)
    assert {tensor.dtype for tensor in read_weights(half).values()} == {torch.float32}


def test_unreadable_images_are_counted_and_named(tmp_path):
    folder = write_colours(tmp_path / "data")
    (folder / "train" / "red" / "3.png").write_bytes(b"no image")
    run = train(tiny_recipe(steps=9), folder, tmp_path / "run", settings=["diagnose_every=9"])
    assert run.finished
    assert run.settings["skipped"] == 1
    [name] = set(run.skipped["name"])
    assert name.endswith("red/3.png")
    assert len(run.skipped) >= 2  # once an epoch
    assert "Unreadable images: 1" in (run.path / "README.md").read_text(encoding="utf-8")
