"""A verification with tiny data, models of three blocks and a few steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_training import OPTIONS, tiny_recipe, write_colours
from tokenlens.verification.scales.base import Pace, Scale, ScaleProbe

CLASSES = ("ground", "sky", "thing")


def tiny_data(folder: Path, shuffled: bool = False) -> Path:
    """Write a folder for ``tokenlens verify --data``: labelled colours, and pictures with masks.

    Args:
        folder: where.
        shuffled: make labels and masks independent of the pictures.
    """
    write_colours(folder / "classification", per_class=12)
    draw = np.random.default_rng(1)
    if shuffled:
        files = sorted((folder / "classification" / "train").rglob("*.png"))
        contents = [file.read_bytes() for file in files]
        for file, other in zip(files, draw.permutation(len(files)), strict=True):
            file.write_bytes(contents[other])
    root = folder / "segmentation" / "toy"
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    for split, count in (("train", 12), ("test", 6)):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for number in range(count):
            picture, mask = scene(draw)
            Image.fromarray(picture).save(root / split / "images" / f"{number}.png")
            if shuffled:
                mask = scene(draw)[1]
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    (folder / "photos").mkdir()
    for number in range(9):
        Image.fromarray(scene(draw)[0]).save(folder / "photos" / f"{number}.png")
    return folder


def scene(draw: np.random.Generator, size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Draw a blue sky above green ground with a red thing in it, noisy; and its mask."""
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[: draw.integers(size // 4, 3 * size // 4)] = 1
    y, x = draw.integers(0, size - 20, 2)
    mask[y : y + 20, x : x + 20] = 2
    colour = np.array([[60, 160, 60], [80, 80, 200], [200, 60, 60]])[mask]
    return np.clip(colour + draw.normal(0, 40, colour.shape), 0, 255).astype(np.uint8), mask


def tiny_scale(**changes: Any) -> Scale:
    """Six steps of a supervised training of two blocks, and three probes."""
    values: dict[str, Any] = {
        "recipe": tiny_recipe(
            model_options={**OPTIONS, "depth": 3, "init_values": 0.1}, steps=6, diagnose_every=3, diagnose_images=8
        ),
        "recipe_name": "tiny",
        "train_images": 24,
        "analyzed_images": 9,
        "probes": (ScaleProbe("segmentation", 32), ScaleProbe("segmentation", 64), ScaleProbe("knn", 32, "cls")),
        "pace": Pace("nowhere", train=100),
    }
    return Scale(**values | changes)


def replace_scale(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name of a scale stand for this one."""
    for module in ("tokenlens.verification", "tokenlens.verification.prepare"):
        monkeypatch.setattr(f"{module}.scale_of", lambda name: scale)
