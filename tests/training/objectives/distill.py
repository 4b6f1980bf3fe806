"""A teacher with another patch grid, and a cache that is empty at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

SPLITS = True
MOVES = ()

TEACHER, TEACHER_SIZE = "test_vit", 48
"""timm's smallest ViT with CLS; 3×3 patches, where the student has 4×4."""


def trained_teacher(folder: Path, name: str = TEACHER, size: int = TEACHER_SIZE) -> dict[str, Any]:
    """Return options for a teacher with random weights in a file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = timm.create_model(name, img_size=size, num_classes=0)
        weights = {key: value + 0.05 * torch.randn_like(value) for key, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.safetensors"
    save_file(weights, file)
    return {"teacher": name, "teacher_checkpoint": str(file), "teacher_image_size": size}


def options(folder: Path) -> dict[str, Any]:
    return {**trained_teacher(folder), "views": "flip", "cache": str(folder / "cache")}
