"""Images with masks that give the class of each pixel, for segmentation."""

# Shapes: H height, W width.

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenlens.images.decoding import UnreadableImageError, describe_error
from tokenlens.images.files import ImageFiles, RawImage, find_images, preview_names, printable_name
from tokenlens.images.labelled.splits import SPLITS, Split, check_split, choose_split, describe_split, read_class_names
from tokenlens.images.layouts import SEGMENTATION as LAYOUT
from tokenlens.images.layouts import describe_mismatch
from tokenlens.images.packed_strings import PackedStrings

IGNORE = 255
"""Mask value of pixels that belong to no class and are not counted."""


@dataclass(frozen=True, eq=False)
class MaskedImages:
    """Images with masks, of one split of a folder, in a fixed order.

    Args:
        names: of the images, relative to the folder of images.
        classes: class names, by number.
        description: for a run folder; see ``tokenlens.images.labelled.splits.describe_split``.
        folder: of the split.
        masks: names of the masks, relative to the folder of masks.
    """

    names: PackedStrings
    classes: tuple[str, ...]
    description: dict[str, Any]
    folder: Path
    masks: PackedStrings

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Read one image as RGB and its mask, uint8 (H, W): class numbers, or 255.

        Raises:
            tokenlens.images.decoding.UnreadableImageError: if one of the two cannot be read or decoded.
            ValueError: if the mask does not fit the image: another size, several channels, or values that are not
                classes.
        """
        image = ImageFiles(self.folder / "images", self.names)[index].decode()
        path = self.folder / "masks" / self.masks[index]
        mask_HW = read_mask(path)
        name = f"the mask {printable_name(self.masks[index])}"
        if mask_HW.shape != (image.height, image.width):
            raise ValueError(
                f"{name} has {mask_HW.shape[1]}×{mask_HW.shape[0]} pixels, but its image has "
                f"{image.width}×{image.height}; expected the same size"
            )
        wrong = np.unique(mask_HW[(mask_HW >= len(self.classes)) & (mask_HW != IGNORE)])
        if len(wrong):
            raise ValueError(
                f"{name} contains {preview_names(list(map(str, wrong)))}, but there are {len(self.classes)} classes; "
                f"expected 0 to {len(self.classes) - 1}, or {IGNORE} for pixels to ignore"
            )
        return image, mask_HW


def read_mask(path: Path) -> np.ndarray:
    """Read a PNG file with one channel: grey levels, or palette indices.

    Returns:
        uint8 (H, W).

    Raises:
        tokenlens.images.decoding.UnreadableImageError: if it cannot be read or decoded.
        ValueError: if it has several channels, or values above 255.
    """
    name = f"the mask {printable_name(path.name)}"
    try:
        raw = RawImage.from_file(path.name, path)
        if not isinstance(raw.content, bytes):
            raise OSError(raw.reason)
        with Image.open(BytesIO(raw.content), formats=("PNG",)) as image:
            raw_mode = str(image.tile[0][3]) if image.tile else ""
            image.load()
            mode, values_HW = image.mode, np.asarray(image)
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, ValueError, … for damaged files
        raise UnreadableImageError(f"{name}: {describe_error(error)}") from error
    if mode not in ("L", "P", "1") and not mode.startswith("I"):
        raise ValueError(
            f"{name} has colours (PIL mode {mode}); expected one channel that holds the class number of each pixel"
        )
    # PIL scales grey levels of 2 and 4 bits to 0–255.
    values_HW = values_HW // {"L;2": 85, "L;4": 17}.get(raw_mode, 1)
    if values_HW.max(initial=0) > IGNORE or values_HW.min(initial=0) < 0:
        raise ValueError(f"{name} contains {values_HW.max()}; expected values from 0 to {IGNORE}")
    return values_HW.astype(np.uint8)


def open_masks(folder: str | os.PathLike[str], split: Split = "train") -> MaskedImages:
    """Open images with masks: ``train/images/NAME.jpg`` and ``train/masks/NAME.png``; see docs/training-data.md.

    Args:
        folder: with ``train``, one of ``val``, ``validation`` and ``test``, and ``classes.txt``.
        split: ``"train"`` or ``"test"``.

    Raises:
        ValueError: if the layout differs; the message states what was expected and what was found.
    """
    root = Path(folder).expanduser()
    check_split(split)
    if not root.is_dir():
        problem = f"{root} is a file" if root.is_file() else f"there is no folder {root}"
        if root.parts[:1] in (("wds",), ("hfds",)):
            problem = f"{root} is a source of images and labels, but masks are read from folders alone"
        raise ValueError(f"{problem}; expected images with masks as {LAYOUT}")
    found = [name for name in SPLITS if (root / name).is_dir()]
    if not found:
        raise ValueError(
            f"no folder train in {root}, only {_preview_folder(root)}; expected {LAYOUT}{describe_mismatch(root)}"
        )
    chosen, undivided = choose_split(found, split, f"folder {root}")
    if split == "test" and undivided:
        raise ValueError(f"no test folder in {root}, only {preview_names(found)}; expected {LAYOUT}")
    for part in ("images", "masks"):
        if not (root / chosen / part).is_dir():
            raise ValueError(
                f"no folder {part} in {root / chosen}, only {_preview_folder(root / chosen)}; expected {LAYOUT}"
                + describe_mismatch(root)
            )
    if not (root / "classes.txt").is_file():
        raise ValueError(f"no classes.txt in {root}, with one class name per line; expected {LAYOUT}")
    classes = read_class_names(root / "classes.txt")
    if len(classes) > IGNORE:
        raise ValueError(f"{root / 'classes.txt'} lists {len(classes)} classes; 8-bit masks allow at most {IGNORE}")
    found_images = find_images(root / chosen / "images")
    images, masks = _by_stem(found_images), _by_stem(find_images(root / chosen / "masks"))
    _check_match(root / chosen, images, masks)
    names, mask_names = PackedStrings(images.values()), PackedStrings(masks[stem] for stem in images)
    description = describe_split(f"folder {root}", chosen, names, None, classes, found_images.notes)
    return MaskedImages(names, classes, description, root / chosen, mask_names)


def _preview_folder(folder: Path) -> str:
    return preview_names(sorted(path.name for path in folder.iterdir()))


def _by_stem(images: ImageFiles) -> dict[str, str]:
    """Return path without extension → path, of the images of a folder."""
    found: dict[str, str] = {}
    for name in images.names:
        other = found.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            raise ValueError(
                f"{images.folder} has {printable_name(other)} and {printable_name(name)}; expected one file per name"
            )
    return found


def _check_match(folder: Path, images: dict[str, str], masks: dict[str, str]) -> None:
    """Check that every image has a mask and the reverse, and that masks are PNG files; ValueError otherwise."""
    for kind, files, others, other in (("images", images, masks, "mask"), ("masks", masks, images, "image")):
        unmatched = [name for stem, name in files.items() if stem not in others]
        if unmatched:
            raise ValueError(
                f"{len(unmatched)} {kind} in {folder} have no {other}: {preview_names(unmatched)}; expected "
                "images/NAME.jpg and masks/NAME.png"
            )
    lossy = [name for name in masks.values() if not name.lower().endswith(".png")]
    if lossy:
        raise ValueError(
            f"masks in {folder} are not PNG files: {preview_names(lossy)}; expected PNG, which is lossless"
        )
