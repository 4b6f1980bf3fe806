"""Where the data of a verification are, and the images that it trains on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tokenlens.images.labelled.classes import LabelledImages, content_sha256, open_labelled

SUBSET_SEED = 0

LAYOUT = (
    "a folder with classification/ (labelled images, or one .tar of them), segmentation/ (images with masks), "
    "photos/ and weights/ (of the teacher)"
)


@dataclass(frozen=True)
class VerificationData:
    """Sources, as the trainings, probes and analyses take them.

    Args:
        labelled: see ``tokenlens.images.labelled.classes.open_labelled``.
        masks: see ``tokenlens.images.labelled.masks.open_masks``; None where nothing is segmented.
        images: see ``tokenlens.analyze``.
        teacher: file of the teacher's weights; None for the published ones.
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
    """Look for the parts of a folder of data; what is named singly goes before.

    Args:
        folder: with ``classification``, ``segmentation``, ``photos`` and ``weights``; each may be missing.
        labelled, masks, images, teacher: of ``VerificationData``.
        teacher_file: name of the teacher's weights in ``weights``.

    Raises:
        ValueError: if there are no labelled images, or a part holds something else; says what was expected and found.
    """
    root = None if folder is None else Path(folder).expanduser()
    if root is not None and not root.is_dir():
        raise ValueError(f"there is no folder {root}; the data are {LAYOUT}")
    if labelled is None and root is not None and (root / "classification").is_dir():
        labelled = _only(root / "classification", _holds_images, "labelled images, or one .tar of them")
    if labelled is None:
        where = f"no folder classification in {root}" if root is not None else "no data are given"
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
    """The folder itself, or the one thing in it that fits."""
    if fits(folder):
        return folder
    found = sorted(one for one in folder.iterdir() if fits(one))
    if len(found) == 1:
        return found[0]
    inside = ", ".join(sorted(one.name for one in folder.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"expected {expected} in {folder}, found {len(found)} of it ({inside}); name the one that is meant"
    )


def training_images(source: str, limit: int | None) -> LabelledImages:
    """The images to train on: at most ``limit``, the same number of each class, always the same ones.

    Raises:
        ValueError: as ``open_labelled``, and for a limit below the number of classes.
    """
    images = open_labelled(source, "train")
    if limit is None or limit >= len(images):
        return images
    draw = np.random.RandomState(SUBSET_SEED)
    if images.labels is None:
        chosen = np.sort(draw.permutation(len(images))[:limit])
        words = f"a random {limit:,}"
    else:
        classes = np.unique(images.labels)
        each = limit // len(classes)
        if not each:
            raise ValueError(f"{limit} images cannot be of {len(classes)} classes; expected at least one of each")
        chosen = np.sort(
            np.concatenate([draw.permutation(np.flatnonzero(images.labels == label))[:each] for label in classes])
        )
        words = f"a random {each} of each class, {len(chosen):,}"
    names = images.names.take(chosen)
    labels = None if images.labels is None else images.labels[chosen]
    description = images.description | {
        "split": f"{images.description['split']}: {words} of {len(images):,} (seed {SUBSET_SEED})",
        "count": len(chosen),
        "sha256": content_sha256(names, labels, images.classes),
    }
    return replace(images, names=names, labels=labels, description=description, taken=images.taken[chosen])
