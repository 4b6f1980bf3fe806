"""Optimizer, parameter groups and schedules."""

from __future__ import annotations

import numpy as np
import pytest
import timm
from torch import nn

import tokenlens
from tests.support.tiny_training import OPTIONS, tiny_recipe, train
from tokenlens.training.optimizer import learning_rate, parameter_groups


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    recipe = tiny_recipe(steps=None, epochs=1, lr=1.0, lr_end=0.1, warmup=0.2)
    rates = [learning_rate(recipe, step, 50) for step in range(50)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    falling = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(40) / 39)) / 2
    assert rates[10:] == pytest.approx(falling.tolist())


def test_schedules_are_logged(data, tmp_path):
    recipe = tiny_recipe(steps=3, warmup=0, weight_decay=0.1, weight_decay_end=0.5, log_every=1)
    table = train(recipe, data, tmp_path / "run").metrics
    assert table["weight_decay"].tolist() == pytest.approx([0.1, 0.3, 0.5])
    assert table["lr"].tolist() == pytest.approx([1e-3, (1e-3 + 1e-6) / 2, 1e-6])


@pytest.mark.parametrize("specialization", [None, "everything"])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_parameter_groups(specialization, layer_decay):
    class WithHead(nn.Module):
        def __init__(self):
            super().__init__()
            options = {**OPTIONS, "init_values": 1e-5}
            self.backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, **options)
            if specialization:
                tokenlens.specialize(self.backbone, specialization)
            self.projection = nn.Linear(3, 4)
            self.teacher = nn.Linear(3, 3).requires_grad_(False)

    objective = WithHead()
    found = {}
    for group in parameter_groups(objective, layer_decay):
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = group["lr_scale"], group["decay_scale"]
    for name, parameter in objective.named_parameters():
        if name.startswith("teacher"):
            assert id(parameter) not in found
            continue
        lr_scale, decay_scale = found.pop(id(parameter))
        assert decay_scale == (parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token"))), name
        # the stem, two blocks, the final norm with the last block as timm has it, and the heads
        depth = {"blocks.0": 3, "blocks.1": 2, "norm": 1, "head": 0}
        inside = name.removeprefix("backbone.")
        below = next((steps for start, steps in depth.items() if inside.startswith(start)), 4)
        if layer_decay is None or name.startswith("projection"):
            assert lr_scale == 1
        elif inside.startswith(("blocks", "patch_embed")):
            assert lr_scale in (0.5**below, 0.5 ** (below - 1)), name
    assert not found


@pytest.mark.parametrize("optimizer", ["lamb", "sgd"])
def test_other_timm_optimizers_train(data, tmp_path, optimizer):
    run = train(tiny_recipe(optimizer=optimizer, steps=2), data, tmp_path / "run")
    assert run.finished


def test_vectors_of_the_backbone_have_a_rate_of_their_own(data, tmp_path):
    class WithHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, **OPTIONS)
            self.projection = nn.Linear(3, 4)

    objective = WithHead()
    scales = {id(one): group["lr_scale"] for group in parameter_groups(objective, 0.5, 5.0) for one in group["params"]}
    plain = {id(one): group["lr_scale"] for group in parameter_groups(objective, 0.5) for one in group["params"]}
    assert scales.keys() == plain.keys()
    for name, parameter in objective.named_parameters():
        vector = parameter.ndim == 1 and name.startswith("backbone")
        assert scales[id(parameter)] == plain[id(parameter)] * (5 if vector else 1), name
    run = train(tiny_recipe(steps=1, warmup=0, lr_vectors=0.5), data, tmp_path / "run")
    assert run.finished
