"""Locate the data of a verification and choose its training images."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenlens.images.labelled.classes import LabelledImages, open_labelled

SUBSET_SEED = 0

LAYOUT = (
    "a folder with classification/ (labelled images, or one .tar of them), segmentation/ (images with masks), "
    "photos/ and weights/ (of the teacher)"
)


@dataclass(frozen=True)
class VerificationData:
    """Sources of images for the trainings, probes and analyses.

    Args:
        labelled: see ``tokenlens.images.labelled.classes.open_labelled``.
        masks: see ``tokenlens.images.labelled.masks.open_masks``; None to skip segmentation.
        images: see ``tokenlens.analyze``.
        teacher: file with the teacher's weights; None for the published ones.
    """

    labelled: str
    masks: str | None = None
    images: str = "sample"
    teacher: str | None = None


def find_data(
    folder: str | os.PathLike[str] | None = None,
    *,
    labelled: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    teacher: str | os.PathLike[str] | None = None,
    teacher_file: str | None = None,
) -> VerificationData:
    """Find the parts of a data folder; parts that are given individually take precedence.

    Args:
        folder: holds ``classification``, ``segmentation``, ``photos`` and ``weights``; each is optional.
        labelled, masks, images, teacher: see ``VerificationData``.
        teacher_file: name of the file of the teacher's weights in ``weights``.

    Raises:
        ValueError: if there are no labelled images, or a part does not hold what is expected.
    """
    root = None if folder is None else Path(folder).expanduser()
    if root is not None and not root.is_dir():
        raise ValueError(f"there is no folder {root}; expected {LAYOUT}")
    if labelled is None and root is not None and (root / "classification").is_dir():
        labelled = _only(root / "classification", _holds_images, "labelled images, or one .tar of them")
    if labelled is None:
        where = f"no folder classification in {root}" if root is not None else "no data were given"
        raise ValueError(f"{where}; expected {LAYOUT}, or labelled images (--labelled)")
    if masks is None and root is not None and (root / "segmentation").is_dir():
        masks = _only(root / "segmentation", lambda path: (path / "classes.txt").is_file(), "a folder with classes.txt")
    if images is None:
        images = root / "photos" if root is not None and (root / "photos").is_dir() else "sample"
    if teacher is None and teacher_file and root is not None and (root / "weights" / teacher_file).is_file():
        teacher = root / "weights" / teacher_file
    return VerificationData(
        os.fspath(labelled),
        None if masks is None else os.fspath(masks),
        os.fspath(images),
        None if teacher is None else os.fspath(teacher),
    )


def _holds_images(path: Path) -> bool:
    return path.suffix.lower() == ".tar" or (path / "train").is_dir()


def _only(folder: Path, fits: Callable[[Path], bool], expected: str) -> Path:
    """Return the folder itself if it fits, else the only entry in it that does."""
    if fits(folder):
        return folder
    found = sorted(one for one in folder.iterdir() if fits(one))
    if len(found) == 1:
        return found[0]
    inside = ", ".join(sorted(one.name for one in folder.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"expected {expected} in {folder}, found {len(found)} ({inside}); give the one to use by its own option"
    )


def training_images(source: str, limit: int | None) -> LabelledImages:
    """Return the images to train on: at most ``limit``, the same number per class, always the same ones.

    Raises:
        ValueError: see ``open_labelled``; also for a limit below the number of classes.
    """
    images = open_labelled(source, "train")
    if limit is None or limit >= len(images):
        return images
    draw = np.random.RandomState(SUBSET_SEED)
    if images.labels is None:
        chosen = np.sort(draw.permutation(len(images))[:limit])
        choice = f"a random {limit:,}"
    else:
        classes = np.unique(images.labels)
        each = limit // len(classes)
        if not each:
            raise ValueError(
                f"expected at least one training image per class, got {limit} images of {len(classes)} classes"
            )
        chosen = np.sort(
            np.concatenate([draw.permutation(np.flatnonzero(images.labels == label))[:each] for label in classes])
        )
        choice = f"a random {each} of each class, {len(chosen):,}"
    split = f"{images.description['split']}: {choice} of {len(images):,} (seed {SUBSET_SEED})"
    return images.select(chosen, split)
