"""Images with a mask that says the class of each pixel, for segmentation."""

# Shapes: H height, W width.

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenlens.images.decoding import UnreadableImageError, find_images, unreadable_reason
from tokenlens.images.items import Record, printable
from tokenlens.images.labelled.classes import content_sha256, read_rgb
from tokenlens.images.labelled.splits import SPLITS, Split, choose_split, read_classes, some
from tokenlens.images.packed_strings import Names

IGNORE = 255
"""The value of pixels that belong to no class and do not count."""

LAYOUT = "FOLDER/classes.txt, FOLDER/train/images, FOLDER/train/masks and the same for val, validation or test"


@dataclass(frozen=True, eq=False)
class MaskedImages:
    """Images with their masks in a fixed order, of one split of a folder.

    Args:
        names: of the images, relative to the folder of images.
        classes: names of the classes, by number.
        description: for a run folder: ``source``, ``split``, ``count``, ``classes`` (how many) and ``sha256`` of names
            and classes.
        folder: of the split.
        masks: names of the masks, relative to the folder of masks.
    """

    names: Names
    classes: tuple[str, ...]
    description: dict[str, Any]
    folder: Path
    masks: Names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An image as RGB, and its mask: uint8 (H, W), the number of a class or 255.

        Raises:
            tokenlens.images.decoding.UnreadableImageError: if one of the two cannot be read or decoded.
            ValueError: if the mask is no mask of this image: of another size, with several channels, or with values
                that are no classes.
        """
        name, mask = self.names[index], self.masks[index]
        image = read_rgb(Record.of_file(printable(name), self.folder / "images" / name))
        mask_HW = read_mask(self.folder / "masks" / mask)
        shown = f"the mask {printable(mask)}"
        if mask_HW.shape != (image.height, image.width):
            raise ValueError(
                f"{shown} has {mask_HW.shape[1]}×{mask_HW.shape[0]} pixels, its image {image.width}×{image.height}; "
                "expected the same"
            )
        wrong = np.unique(mask_HW[(mask_HW >= len(self.classes)) & (mask_HW != IGNORE)])
        if len(wrong):
            raise ValueError(
                f"{shown} holds {some(list(map(str, wrong)))}, but there are {len(self.classes)} classes; expected 0 "
                f"to {len(self.classes) - 1}, or {IGNORE} for pixels that do not count"
            )
        return image, mask_HW


def read_mask(path: Path) -> np.ndarray:
    """The values of a PNG file with one channel: grey levels, or the places of its colours in the palette.

    Returns:
        uint8 (H, W).

    Raises:
        tokenlens.images.decoding.UnreadableImageError: if it cannot be read or decoded.
        ValueError: if it has several channels, or values above 255.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            raw = str(image.tile[0][3]) if image.tile else ""
            image.load()
            mode, values_HW = image.mode, np.asarray(image)
    except Exception as error:  # decoders meet broken files with OSError, SyntaxError, struct.error, ValueError, …
        raise UnreadableImageError(f"the mask {printable(path.name)}: {unreadable_reason(error)}") from error
    if mode not in ("L", "P", "1") and not mode.startswith("I"):
        raise ValueError(
            f"the mask {printable(path.name)} is of PIL's mode {mode}; expected one channel that holds the number of a "
            "class for each pixel, not colours"
        )
    # PIL stretches grey levels of 2 and 4 bits to 0–255.
    values_HW = values_HW // {"L;2": 85, "L;4": 17}.get(raw, 1)
    if values_HW.max(initial=0) > IGNORE or values_HW.min(initial=0) < 0:
        raise ValueError(f"the mask {printable(path.name)} holds {values_HW.max()}; expected values from 0 to {IGNORE}")
    return values_HW.astype(np.uint8)


def open_masks(folder: str | os.PathLike[str], split: Split = "train") -> MaskedImages:
    """Open images with masks: ``train/images/NAME.jpg`` with ``train/masks/NAME.png``; docs/training-data.md has more.

    Args:
        folder: with ``train``, one of ``val``, ``validation`` and ``test``, and ``classes.txt``.
        split: ``"train"`` or ``"test"``.

    Raises:
        ValueError: if it is laid out in another way; the message says what was expected and what was found.
    """
    root = Path(folder).expanduser()
    if split not in ("train", "test"):
        raise ValueError(f"a split is train or test, got {split!r}")
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; images with masks are laid out as {LAYOUT}")
    found = [name for name in SPLITS if (root / name).is_dir()]
    if not found:
        inside = sorted(one.name for one in root.iterdir())
        raise ValueError(f"no folder train in {root}, only {some(inside)}; images with masks are laid out as {LAYOUT}")
    taken, whole = choose_split(found, split, f"folder {root}")
    if split == "test" and whole:
        raise ValueError(f"no folder for the test in {root}, only {some(found)}; expected {LAYOUT}")
    for part in ("images", "masks"):
        if not (root / taken / part).is_dir():
            inside = sorted(one.name for one in (root / taken).iterdir())
            raise ValueError(f"no folder {part} in {root / taken}, only {some(inside)}; expected {LAYOUT}")
    if not (root / "classes.txt").is_file():
        raise ValueError(f"no classes.txt in {root}, which names a class on each line; expected {LAYOUT}")
    classes = read_classes(root / "classes.txt")
    if len(classes) > IGNORE:
        raise ValueError(f"{root / 'classes.txt'} names {len(classes)} classes; masks of 8 bits have room for {IGNORE}")
    images, masks = _by_stem(root / taken / "images"), _by_stem(root / taken / "masks")
    _check_pairs(root / taken, images, masks)
    names, of_masks = Names(images.values()), Names(masks[stem] for stem in images)
    description = {
        "source": f"folder {root}",
        "split": taken,
        "count": len(names),
        "classes": len(classes),
        "sha256": content_sha256(names, None, classes),
    }
    return MaskedImages(names, classes, description, root / taken, of_masks)


def _by_stem(folder: Path) -> dict[str, str]:
    """Path without extension → path, of the images below a folder, relative to it."""
    names = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            raise ValueError(f"{folder} has {printable(other)} and {printable(name)}; expected one file of that name")
    return found


def _check_pairs(folder: Path, images: dict[str, str], masks: dict[str, str]) -> None:
    for what, these, others, other in (("images", images, masks, "mask"), ("masks", masks, images, "image")):
        alone = [name for stem, name in these.items() if stem not in others]
        if alone:
            raise ValueError(
                f"{len(alone)} {what} in {folder} have no {other}: {some(alone)}; expected images/NAME.jpg and "
                "masks/NAME.png"
            )
    lossy = [name for name in masks.values() if not name.lower().endswith(".png")]
    if lossy:
        raise ValueError(f"masks in {folder} are no PNG files: {some(lossy)}; expected PNG, which keeps all values")
