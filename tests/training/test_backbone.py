"""Weights that a training starts from."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from safetensors.torch import save_file

import tokenlens
from tests.support.self_distillation import SMALL
from tests.support.tiny_training import OPTIONS, assert_same_weights, read_weights, tiny_recipe, train
from tokenlens.training.backbone import make_backbone


def test_the_backbone_starts_from_a_checkpoint(data, tmp_path):
    torch.manual_seed(3)
    start = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7, **OPTIONS)
    file = tmp_path / "start.safetensors"
    save_file(start.state_dict(), file)
    run = train(tiny_recipe(lr=1e-12, lr_end=0, steps=1), data, tmp_path / "run", specialize="norms", checkpoint=file)
    weights = read_weights(run)
    for name, tensor in start.state_dict().items():
        if name.startswith("head"):  # the checkpoint has seven other classes
            assert weights[name].shape[0] == 3
        elif "norm" in name:
            module, kind = name.rsplit(".", 1)
            assert torch.allclose(weights[f"{module}.cls.{kind}"], tensor, atol=1e-6)
        else:
            assert torch.allclose(weights[name], tensor, atol=1e-6)
    assert run.settings["start"]["source"] == str(file)
    assert run.settings["start"]["steps"] == [
        "10 standard weights copied for both token groups",
        "head left out: head.bias, head.weight",
    ]
    with pytest.raises(ValueError, match="another configuration: start is"):
        train(tiny_recipe(lr=1e-12, lr_end=0, steps=1), data, tmp_path / "run", specialize="norms")


def test_weights_that_do_not_fit_are_refused(data, tmp_path):
    file = tmp_path / "start.safetensors"
    save_file({"blocks.0.norm1.weight": torch.ones(5)}, file)
    with pytest.raises(ValueError, match=r"does not fit.*missing.*of another shape"):
        train(tiny_recipe(), data, tmp_path / "run", checkpoint=file)
    assert not (tmp_path / "run").exists()


def test_an_attention_bias_is_trained_resumed_and_analyzed(data, tmp_path):
    """A DINOv2 training with a learned key and value per block: it stops after a step, and the same call resumes it."""
    recipe = tiny_recipe(
        objective="dinov2",
        objective_options=SMALL,
        model_options={**OPTIONS, "dynamic_img_size": True},
        attention_bias=True,
        steps=2,
        lr=1e-2,
    )
    whole = train(recipe, data, tmp_path / "whole")
    stopped = train(recipe, data, tmp_path / "run", max_minutes=1e-9)
    assert stopped.step == 1
    run = train(recipe, data, tmp_path / "run")
    assert_same_weights(run, whole)
    fresh = make_backbone(recipe, 0).state_dict()
    changed = [
        name for name, tensor in read_weights(run).items() if "bias_" in name and not torch.equal(tensor, fresh[name])
    ]
    assert len(changed) == 4
    standard = make_backbone(dataclasses.replace(recipe, attention_bias=False), 0).state_dict()
    assert all(torch.equal(fresh[name], tensor) for name, tensor in standard.items())
    analysis = tokenlens.analyze(str(run.path), "sample", metrics=["attention_mass"], limit=2, photos=False)
    assert {"cls-bias", "patch-bias"} <= set(analysis.table["group"])
    assert analysis.layout.attention_bias
    assert "attention bias" in (run.path / "README.md").read_text(encoding="utf-8")


def test_an_attention_bias_is_not_continued_from_a_model_without(data, tmp_path, run):
    """`attention_bias=true` with a checkpoint of a model without one"""
    recipe = tiny_recipe(attention_bias=True)
    with pytest.raises(ValueError, match=r"attn\.bias_k.*another function: train it from random weights"):
        train(recipe, data, tmp_path / "run", checkpoint=run.path)
    assert not (tmp_path / "run").exists()
