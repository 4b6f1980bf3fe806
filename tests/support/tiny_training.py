"""Images and recipes so small that a training takes a second."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.support.image_files import picture
from tokenlens.images.decoding import UnreadableImageError
from tokenlens.training.recipe import Recipe
from tokenlens.training.train import train as train_and_report
from tokenlens.training.trained_run import TrainedRun

OPTIONS = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}

train = partial(train_and_report, report=False)
"""``tokenlens.train`` without drawing the report, which takes longer than a tiny training."""


def write_colours(folder: Path, per_class: int = 8, size: int = 40) -> Path:
    """Write reddish, greenish and bluish noise, with a folder for each class under train/."""
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


def read_weights(run: TrainedRun) -> dict[str, Tensor]:
    """Read the weights of a run's model."""
    return load_file(run.path / "model.safetensors")


def assert_same_weights(one: TrainedRun, other: TrainedRun) -> None:
    """Two runs have the same model, bit by bit."""
    left, right = read_weights(one), read_weights(other)
    assert set(left) == set(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


class NumberedImages:
    """Images in memory whose first pixel is their number, some of them unreadable."""

    def __init__(self, count: int, broken: set[int] | None = None, labelled: bool = True) -> None:
        self.names = [f"img{number}" for number in range(count)]
        self.labels = np.arange(count) % 3 if labelled else None
        self.broken = broken or set()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image.Image:
        """Return an image."""
        if index in self.broken:
            raise UnreadableImageError("broken")
        return picture(index)


def telling_views(image: Image.Image) -> list[Tensor]:
    """Two views of different sizes that show the image's number plus draws from all three random generators."""
    pixel = torch.tensor(image.getpixel((0, 0))).float()[:, None, None]
    draws = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    return [pixel.expand(3, 2, 2) + sum(draws), pixel.expand(3, 1, 1) + torch.tensor(draws)[:, None, None]]
