"""Recognize how a folder of data is arranged, so that masks are not taken for photographs, nor splits for classes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenlens.images.decoding import is_image_name

PHOTOGRAPHS = frozenset(["images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "photos", "rgb"])
"""Names, in lower case, of folders that hold the photographs of a segmentation data set."""

_MASKS = (
    "masks mask labels label annotations annotation segmentation segmentations gt trimaps groundtruth ground_truth "
    "segmentationclass segmentationclassaug segmentationobject gtfine gtcoarse stuffthingmaps"
)
MASKS = frozenset(_MASKS.split())
"""Names of folders that hold its masks."""

_SPLIT = re.compile(r"(train|training|trainval|val|valid|validation|test|testing|dev)(\d{4})?")

SEGMENTATION = "FOLDER/classes.txt, FOLDER/train/images, FOLDER/train/masks and the same for val, validation or test"
CLASSES = "FOLDER/train/CLASS/NAME.jpg and FOLDER/val/CLASS/NAME.jpg, or FOLDER/CLASS/NAME.jpg"


def name_layout(folders: Iterable[str]) -> str:
    """Return what a folder with these direct subfolders is, in a few words; "" if they may be classes.

    >>> name_layout(["images", "masks"])
    'images with masks, for segmentation'
    >>> name_layout(["Annotations", "JPEGImages", "SegmentationClass"])
    "PASCAL VOC's own layout"
    >>> name_layout(["train2017", "val2017"]), name_layout(["cat", "dog", "mask"])
    ("COCO's own layout", '')
    """
    names = {name.lower() for name in folders}
    if "jpegimages" in names:
        return "PASCAL VOC's own layout"
    if "leftimg8bit" in names:
        return "Cityscapes' own layout"
    if {"images", "annotations"} <= names:
        return "images with annotations, as in ADE20K"
    if names & PHOTOGRAPHS and names & MASKS:
        return "images with masks, for segmentation"
    splits = [match for name in names if (match := _SPLIT.fullmatch(name))]
    if any(match[2] for match in splits):
        return "COCO's own layout"
    if names and len(splits) == len(names):
        return "splits, not classes"
    if names and names <= PHOTOGRAPHS | MASKS:
        return "a part of a segmentation data set"
    return ""


def find_masks(names: Iterable[str]) -> tuple[str, str] | None:
    """Find a folder of masks beside one of photographs.

    Args:
        names: paths of image files, relative to one folder.

    Returns:
        The folders of the masks and of the photographs, or None.

    >>> find_masks(["train/images/1.jpg", "train/masks/1.png"]), find_masks(["cat/1.jpg", "mask/1.jpg"])
    (('train/masks', 'train/images'), None)
    """
    below: dict[str, set[str]] = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        while folder:
            parent, _, last = folder.rpartition("/")
            below.setdefault(parent, set()).add(last)
            folder = parent
    for parent, children in sorted(below.items()):
        masks = sorted(name for name in children if name.lower() in MASKS)
        photographs = sorted(name for name in children if name.lower() in PHOTOGRAPHS)
        photographs += sorted(name for name in children if _SPLIT.fullmatch(name.lower()))
        if masks and photographs:
            prefix = parent + "/" * bool(parent)
            return prefix + masks[0], prefix + photographs[0]
    return None


def check_photographs(source: str, names: Iterable[str]) -> None:
    """Raise ValueError if there are masks among image files, given by their paths relative to the source."""
    found = find_masks(names)
    if found is not None:
        raise ValueError(
            f"{source} holds masks ({found[0]}) beside photographs, which would be read as images; give the folder of "
            f"the photographs alone ({found[1]}). For segmentation with `tokenlens probe` the layout is {SEGMENTATION}"
        )


def check_classes(source: str, classes: Iterable[str]) -> None:
    """Raise ValueError if the folders that would be classes are the parts of another layout."""
    classes = list(classes)
    layout = name_layout(classes)
    if layout:
        task = (
            "it fits `tokenlens probe --task segmentation`, and objectives without labels take its folder of images"
            if layout.endswith("for segmentation")
            else f"segmentation takes {SEGMENTATION}"
        )
        raise ValueError(
            f"{source} has {', '.join(sorted(classes)[:5])} where classes are expected: this is {layout}; {task}. "
            f"Class labels are read from {CLASSES}"
        )


def describe_mismatch(folder: Path) -> str:
    """Return what a folder is that lacks the layout of images with masks, as the end of an error message."""
    for inside in (folder, folder / "train"):
        if not inside.is_dir():
            continue
        subfolders = [path.name for path in inside.iterdir() if path.is_dir()]
        layout = name_layout(subfolders)
        if layout and not layout.startswith(("splits", "images with masks")):
            return f". This is {layout}, which has to be rearranged"
        if not layout and any(is_image_name(file.name) for name in subfolders for file in (inside / name).iterdir()):
            return (
                ". This looks like a folder per class, which fits `tokenlens probe --task knn` and `linear`, and "
                "training with labels"
            )
    return ""
