"""Images and recipes so small that a training takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenlens.training.recipe import Recipe

OPTIONS = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}


def colours(folder: Path, per_class: int = 8, size: int = 40) -> Path:
    """Photographs of nothing in three classes, reddish, greenish and bluish, with a folder for each under train/."""
    draw = np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = draw.integers(0, 120, (size, size, 3), dtype=np.uint8)
            pixels[..., 2 - channel] += 120
            Image.fromarray(pixels).save(folder / "train" / name / f"{number}.png")
    return folder


def tiny_recipe(**changes: Any) -> Recipe:
    """Four steps of a supervised training of two blocks on eight images each."""
    values: dict[str, Any] = {
        "objective": "supervised",
        "model": "vit_tiny_patch16_224",
        "model_options": OPTIONS,
        "image_size": 32,
        "batch_size": 8,
        "steps": 4,
        "lr": 1e-3,
        "warmup": 0.25,
        "log_every": 2,
    }
    return Recipe(**values | changes)
