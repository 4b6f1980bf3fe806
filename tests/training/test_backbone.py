"""Weights that a training starts from."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.support.tiny_training import OPTIONS, read_weights, tiny_recipe, train


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
