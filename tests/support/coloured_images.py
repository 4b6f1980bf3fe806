"""Small labelled images whose class is their colour, which any probe can learn."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (50, 170, 60), "red": (200, 50, 40)}
VOID = 255


def _noisy(shape: tuple[int, int], colour: tuple[int, int, int], random: np.random.RandomState) -> np.ndarray:
    return np.clip(np.array(colour) + random.normal(0, 25, (*shape, 3)), 0, 255).astype(np.uint8)


def class_folders(root: Path, train: int = 10, test: int = 4, size: int = 32) -> Path:
    """Write ``train`` and ``val`` with this many images of each colour."""
    random = np.random.RandomState(0)
    for split, count in (("train", train), ("val", test)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(_noisy((size, size), colour, random)).save(folder / f"{i}.png")
    return root


def mask_folders(root: Path, train: int = 12, test: int = 5, size: tuple[int, int] = (40, 56)) -> Path:
    """Write images (height, width) whose left and right parts have different colours; the top row has no class."""
    random = np.random.RandomState(1)
    colours = list(COLOURS.values())
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(COLOURS) + "\n", encoding="utf-8")
    height, width = size
    for split, count in (("train", train), ("test", test)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            left, right = random.permutation(3)[:2]
            border = random.randint(width // 4, 3 * width // 4)
            pixels_HW3 = _noisy(size, colours[left], random)
            pixels_HW3[:, border:] = _noisy((height, width - border), colours[right], random)
            mask_HW = np.where(np.arange(width) < border, left, right)[None].repeat(height, 0).astype(np.uint8)
            mask_HW[0] = VOID
            Image.fromarray(pixels_HW3).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask_HW).save(root / split / "masks" / f"{i}.png")
    return root
