"""Preloaded images give the training that reading them gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_training import assert_same_weights, tiny_recipe, train
from tests.training.objectives.distill import trained_teacher
from tokenlens.images.labelled.classes import open_labelled
from tokenlens.training.batches import BatchOrder, sample_batches, training_batches
from tokenlens.training.objectives.base import SingleView
from tokenlens.training.preload import preload


def shrink(image):
    return torch.from_numpy(np.asarray(image.resize((8, 8)), dtype=np.float32)).permute(2, 0, 1)


def assert_same(one, other):
    assert torch.equal(one.views[0], other.views[0])
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.positions, other.positions)


def test_batches_are_those_of_the_reader(data):
    images, views = open_labelled(data, "train"), SingleView(shrink)
    ready = preload(images, views, torch.device("cpu"))
    assert preload(images, views, torch.device("cpu")) is ready, "decoded once"
    order = {"batch_size": 8, "steps": 5, "seed": 3}
    for (one, _), (other, _) in zip(
        ready.batches(BatchOrder(len(images), **order)), training_batches(images, views, **order), strict=True
    ):
        assert_same(one, other)
    for one, other in zip(ready.sample(10), sample_batches(images, views, 0, 10), strict=True):
        assert_same(one, other)


def test_a_training_with_everything_on_the_device(data, tmp_path):
    options = {**trained_teacher(tmp_path / "teacher"), "views": "flip", "fit_heads": 16, "loss": "smooth_l1"}
    recipe = {"objective": "distill", "steps": 3, "log_every": 1}
    losses = []
    for cache, loaded in (("device", True), (str(tmp_path / "cache"), False)):
        chosen = tiny_recipe(**recipe, objective_options={**options, "cache": cache}, preload=loaded)
        losses.append(train(chosen, data, tmp_path / f"run_{loaded}").metrics["loss"].to_numpy())
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_random_views_cannot_be_kept(data, tmp_path):
    """`preload=True` with views that depend on chance"""
    with pytest.raises(ValueError, match=r"preload=True: the views of supervised .* depend on chance"):
        train(tiny_recipe(preload=True), data, tmp_path / "run")


@pytest.mark.parametrize("loaded", [False, True])
def test_a_resumed_training_keeps_its_heads(data, tmp_path, loaded):
    options = {**trained_teacher(tmp_path / "teacher"), "views": "flip", "fit_heads": 16, "loss": "smooth_l1"}
    recipe = tiny_recipe(objective="distill", steps=4, objective_options=options | {"cache": None}, preload=loaded)
    whole = train(recipe, data, tmp_path / "whole")
    stopped = train(recipe, data, tmp_path / "parts", max_minutes=1e-9)
    assert 0 < stopped.step < 4
    assert_same_weights(train(recipe, data, tmp_path / "parts"), whole)
