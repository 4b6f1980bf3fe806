"""An objective as a training makes it, on a tiny model and a few crops of photographs."""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import tokenlens
from tokenlens.training.objectives.base import (
    Objective,
    Progress,
    Setting,
    TrainingBatch,
    Views,
    make_options,
    objectives,
)

IMAGES, SIZE, STEPS = 8, 32, 30
CLASSES = ("building", "flower")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BACKBONES: dict[str, dict[str, Any]] = {
    "plain": {"model_name": "vit_tiny_patch16_224", "init_values": 0.1},
    "registers": {"model_name": "vit_small_patch14_reg4_dinov2", "init_values": 0.1},
    "distilled": {"model_name": "deit_tiny_distilled_patch16_224"},
    "no_cls": {"model_name": "vit_medium_patch16_gap_256"},
}


def case(objective: str) -> ModuleType:
    """Import the test case of an objective, see docs/add-an-objective.md."""
    try:
        return importlib.import_module(f"tests.training.objectives.{objective}")
    except ModuleNotFoundError:
        pytest.fail(
            f"the objective {objective!r} has no test case: add tests/training/objectives/{objective}.py with "
            "options(folder), the options for a model of 48 channels and images of 32 pixels; SPLITS, whether the loss "
            "of a batch is the mean of the losses of its parts; and MOVES, prefixes of names that after_step may change"
        )


def backbone(
    classes: int, kind: str = "plain", specialization: str | None = None, seed: int = 0, **options: Any
) -> nn.Module:
    """A ViT of 48 channels and 16 patches, no weight of which is a plain 0 or 1, in train mode."""
    options = (
        {
            "img_size": SIZE,
            "patch_size": 8,
            "embed_dim": 48,
            "depth": 2,
            "num_heads": 3,
            "dynamic_img_size": True,
            "num_classes": classes,
        }
        | BACKBONES[kind]
        | options
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(**options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return (tokenlens.specialize(model, specialization) if specialization else model).train()


def built(
    name: str,
    options: Mapping[str, Any],
    kind: str = "plain",
    specialization: str | None = None,
    seed: int = 0,
    **setting: Any,
) -> Objective:
    """The objective around a tiny backbone."""
    chosen = make_options(name, options)
    cls: type[Objective] = objectives.get(name)

    def make(classes: int) -> nn.Module:
        return backbone(classes, kind, specialization, seed)

    known = {
        "image_size": SIZE,
        "classes": CLASSES,
        "batch_size": IMAGES,
        "steps": STEPS,
        "seed": seed,
        "make_backbone": make,
        "images": IMAGES,
        "images_sha256": "0" * 64,
    } | setting
    return cls(make(cls.classes(chosen, CLASSES)), chosen, Setting(**known)).train()


def views(name: str, options: Mapping[str, Any]) -> Views:
    """The objective's augmentation."""
    return objectives.get(name).views(make_options(name, options), SIZE, MEAN, STD)


@cache
def photographs() -> list[Image.Image]:
    """Return crops of two photographs in turn, wider than high."""
    pictures = [Image.fromarray(np.asarray(pixels)) for pixels in load_sample_images().images]
    corners = np.random.default_rng(0).integers(0, 200, (IMAGES, 2))
    return [pictures[i % 2].crop((left, top, left + 160, top + 120)) for i, (left, top) in enumerate(corners.tolist())]


def seeded(seed: int) -> None:
    """Seed everything that an augmentation may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def batch(augment: Views, seed: int = 0) -> TrainingBatch:
    """A step's whole batch."""
    samples = []
    for index, image in enumerate(photographs()):
        seeded(1000 * seed + index)
        samples.append(augment(image))
    stacked: list[Tensor] = [torch.stack(same) for same in zip(*samples, strict=True)]
    positions = torch.arange(IMAGES)
    return TrainingBatch(stacked, positions % len(CLASSES), positions, positions, IMAGES)


def part(whole: TrainingBatch, positions: Sequence[int]) -> TrainingBatch:
    """Return the images at some positions of a batch."""
    rows = torch.tensor(positions)
    labels = None if whole.labels is None else whole.labels[rows]
    return TrainingBatch([view[rows] for view in whole.views], labels, whole.indices[rows], rows, whole.size)


def at(step: int) -> Progress:
    """Return the position of a step in a training of 30 steps, two an epoch."""
    return Progress(step=step, steps=STEPS, steps_per_epoch=2.0, seed=0)


def optimizer_of(objective: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)


def step(objective: Objective, whole: TrainingBatch, progress: Progress, optimizer: torch.optim.Optimizer) -> float:
    """Do one step as the training does, and return the loss."""
    optimizer.zero_grad()
    loss = objective(whole, progress)["loss"]
    loss.backward()
    objective.after_backward(progress)
    optimizer.step()
    objective.after_step(progress)
    return loss.item()


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return copy.deepcopy({name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)})
