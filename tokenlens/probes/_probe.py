"""``probe``: extract the features of two splits of a data set, train a head on one and test it on the other."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tokenlens.families.base import Family
from tokenlens.images.files import printable_name
from tokenlens.images.labelled.classes import open_labelled
from tokenlens.images.labelled.masks import MaskedImages, open_masks
from tokenlens.models.loading import load_model
from tokenlens.probes._extraction import SplitFeatures, extract_features
from tokenlens.probes._features import RAW_PIXELS, Backbone, FeatureKind, FrozenModel, RawPixels
from tokenlens.probes._result import LARGEST_HEAD, ProbeResult
from tokenlens.probes.base import ImageFeatures, PatchFeatures, Probe, Progress, probes
from tokenlens.statistics.bootstrap import DRAWS
from tokenlens.storage.provenance import made_by
from tokenlens.storage.seeds import check_seed
from tokenlens.storage.wording import counted

INTERVAL_TEXT = f"95 %, percentiles of {DRAWS} draws of the test images with replacement (seed 0)"

SUBSET_SEED = 0
"""Seed of the images that ``limit`` chooses, whatever the probe's seed, so that results stay comparable by image."""

SOURCES = ("cls", "patch_mean", "both")
"""Features that can represent an image: its CLS token, the mean of its patches, or both concatenated."""


def probe(
    model: str | nn.Module,
    task: str,
    data: Any,
    *,
    source: str | None = None,
    blocks: Sequence[int] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = True,
    img_size: int | tuple[int, int] | None = None,
    model_args: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: str = "auto",
    amp: bool = False,
    seed: int = 0,
    limit: int | None = None,
    family: Family | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> ProbeResult:
    """Train a small head on a frozen model's features and test it; docs/probes.md describes the protocols.

    Args:
        model: see ``analyze``; or ``"raw_pixels"`` for a baseline without a model.
        task: a name of ``tokenlens list probes``: ``"knn"``, ``"linear"``, ``"segmentation"``.
        data: labelled images, see ``tokenlens.images.labelled``; for segmentation a folder of images and masks. Or the
            two splits themselves, (train, test).
        source: ``"cls"``, ``"patch_mean"`` or ``"both"``; by default CLS where the model has it. Segmentation always
            uses the patches.
        blocks: use ``resid_post`` of these blocks through the final norm, concatenated; by default the output of the
            final norm. Negative numbers count from the end.
        checkpoint, pretrained, img_size, model_args, device, amp, family: see ``analyze``.
        batch_size: images per forward pass; it does not change the score.
        workers: processes that decode images.
        seed: seed of random weights, of the held-out images, and of the order of training.
        limit: use at most this many images of each split, always the same ones.
        cache: read features from the on-disk cache, and write new ones to it.
        progress: called with the stage (features, training, testing), how much is done of how much, and the unit.

    Raises:
        LookupError: for an unknown model, probe or block, or a source that the model does not have.
        ValueError: for data without labels, splits with different classes, no readable images, or features that are
            not finite.
    """
    started = time.perf_counter()
    task_probe: Probe = probes.get(task)(progress)
    kind = task_probe.kind
    _check_options(kind, task, source, limit, batch_size, workers)
    check_seed(seed)
    splits = open_splits(kind, data)
    data_path = os.path.abspath(data) if isinstance(data, str | os.PathLike) and Path(data).exists() else ""
    if isinstance(model, str) and model == RAW_PIXELS:
        given = {"source": source, "blocks": blocks, "checkpoint": checkpoint, "model_args": model_args or None}
        if unused := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{RAW_PIXELS} is no model, so it has no {' or '.join(unused)}; leave it out")
        backbone: Backbone = RawPixels(kind, img_size)
        head_device = torch.device("cpu")
    else:
        loaded = load_model(
            model,
            pretrained=pretrained,
            checkpoint=checkpoint,
            img_size=img_size,
            model_args=model_args,
            device=device,
            seed=seed,
            family=family,
        )
        backbone, head_device = FrozenModel(loaded, kind, blocks, amp), loaded.device
    sources = _choose_sources(backbone, kind, source)
    features = []
    for images, part in zip(splits, ("training", "test"), strict=True):
        indices = choose_images(len(images), limit)

        def show(done: int, total: int = len(indices), part: str = part) -> None:
            if progress is not None:
                progress(f"features of the {part} images", done, total, "images")

        show(0)
        found = extract_features(
            backbone,
            kind,
            images,
            images.read if kind == "image" else partial(_read_image, images),
            indices,
            batch_size=batch_size,
            workers=workers,
            cache=cache,
            data_path=data_path,
            progress=show,
        )
        features.append(found)
    distinct, copies = drop_copies(*features)
    train, test = (
        join_labels(kind, images, found, backbone, sources, head_device)
        for images, found in zip(splits, (features[0], distinct), strict=True)
    )
    names = tuple(printable_name(splits[1].names[index]) for index in distinct.indices[distinct.readable])
    extracted = time.perf_counter()
    head = task_probe.fit(train, seed)
    score = task_probe.score(head, test, names)
    ended = time.perf_counter()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in head.tensors.items()}
    head_bytes = sum(tensor.nbytes for tensor in tensors.values())
    return ProbeResult(
        value=score.value,
        ci_low=score.ci_low,
        ci_high=score.ci_high,
        n=len(test),
        unit=task_probe.unit,
        protocol={
            "probe": probes.describe(task),
            **backbone.protocol,
            **_describe_sources(backbone, kind, sources),
            "training images": describe_split(splits[0], features[0]),
            "test images": describe_split(splits[1], features[1]),
            **({"copies": copies} if copies else {}),
            "classes": len(test.classes),
            **score.protocol,
            "interval": INTERVAL_TEXT,
            "seed": seed,
        },
        per_image=score.per_image,
        table=score.table,
        model=backbone.name,
        task=task,
        untrained=backbone.untrained,
        provenance={
            "identity": backbone.identity,
            "data": [images.description for images in splits],
            "sources": list(sources),
            "data_path": data_path or (str(data) if isinstance(data, str | os.PathLike) else ""),
            "head_bytes": head_bytes,
            "skipped": [
                {"split": split, **image}
                for split, found in zip(("train", "test"), features, strict=True)
                for image in found.skipped
            ],
            "batch_size": batch_size,
            "limit": limit,
            "seed": seed,
            **made_by("probe"),
            "seconds": {
                "features": round(sum(found.seconds for found in features), 3),
                "probe": round(ended - extracted, 3),
                "all": round(ended - started, 3),
            },
            "features_kept_in": [None if found.folder is None else str(found.folder) for found in features],
        },
        head=tensors if head_bytes <= LARGEST_HEAD else {},
    )


def _read_image(images: MaskedImages, index: int) -> Image.Image:
    return images.read(index)[0]


def _check_options(
    kind: FeatureKind, task: str, source: str | None, limit: int | None, batch_size: int, workers: int
) -> None:
    if kind == "patches" and source not in (None, "patches"):
        raise ValueError(f"the probe {task} always uses the patch tokens; leave source={source!r} out")
    if kind == "image" and source not in (None, *SOURCES):
        raise ValueError(f"expected source to be one of {', '.join(SOURCES)}, got {source!r}")
    if (limit is not None and limit < 2) or batch_size < 1 or workers < 0:
        raise ValueError(
            f"expected limit ≥ 2, batch_size ≥ 1 and workers ≥ 0, got limit={limit}, batch_size={batch_size}, "
            f"workers={workers}"
        )


def _choose_sources(backbone: Backbone, kind: FeatureKind, source: str | None) -> tuple[str, ...]:
    """Return the names of the features to concatenate."""
    if kind == "patches":
        return ("patches",)
    if source is None:
        return backbone.sources[:1]
    sources = ("cls", "patch_mean") if source == "both" else (source,)
    if not set(sources) <= set(backbone.sources):
        available = ", ".join(backbone.sources)
        raise LookupError(f"{backbone.name} has no CLS token for source={source!r}; available: {available}")
    return sources


def _describe_sources(backbone: Backbone, kind: FeatureKind, sources: tuple[str, ...]) -> dict[str, str]:
    if kind == "patches":
        return {"patch grid": f"{backbone.grid[0]}×{backbone.grid[1]}"}
    names = {"cls": "CLS token", "patch_mean": "mean of the patch tokens", "pixels": "pixels"}
    return {"source": " ‖ ".join(names[source] for source in sources)}


def open_splits(kind: FeatureKind, data: Any) -> tuple[Any, Any]:
    """Return the training and the test split.

    Raises:
        ValueError: without labels, with different classes in the splits, or with fewer than two.
    """
    if isinstance(data, tuple):
        train, test = data
    elif kind == "image":
        train, test = open_labelled(data, split="train"), open_labelled(data, split="test")
    else:
        train, test = open_masks(data, split="train"), open_masks(data, split="test")
    if kind == "image" and (train.labels is None or test.labels is None):
        raise ValueError("the images have no labels; expected a folder for each class in each split")
    if tuple(train.classes) != tuple(test.classes):
        raise ValueError(
            f"the splits have different classes: {len(train.classes)} in training ({', '.join(train.classes[:3])} …), "
            f"{len(test.classes)} in test ({', '.join(test.classes[:3])} …)"
        )
    if len(train.classes) < 2:
        raise ValueError(f"expected at least 2 classes, got {len(train.classes)}")
    return train, test


def choose_images(count: int, limit: int | None) -> np.ndarray:
    """Return the numbers of at most ``limit`` of ``count`` images, always the same random ones."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.RandomState(SUBSET_SEED).permutation(count)[:limit])


def drop_copies(train: SplitFeatures, test: SplitFeatures) -> tuple[SplitFeatures, str]:
    """Leave out test images whose pixels are those of another one, so that n is the number of distinct images.

    Returns:
        The features of the test images, and a sentence on copies within the splits and between them; empty if there
        are none.
    """
    seen, tested = (split.arrays["hashes"][split.readable] for split in (train, test))
    distinct, first = np.unique(tested, return_index=True)
    counts = (
        (len(tested) - len(distinct), "test image", "left out as copies of others"),
        (int(np.isin(distinct, seen).sum()), "test image", "also among the training images"),
        (len(seen) - len(np.unique(seen)), "training image", "equal to others, not left out"),
    )
    kept = np.zeros_like(test.readable)
    kept[np.flatnonzero(test.readable)[first]] = True
    found = [f"{counted(count, noun)} {what}" for count, noun, what in counts if count]
    return replace(test, readable=kept), "; ".join(found)


def describe_split(images: Any, features: SplitFeatures) -> str:
    """Return the source and number of a split's images in words."""
    readable, chosen = int(features.readable.sum()), len(features.indices)
    source = f"{images.description.get('source', 'images')}, {images.description.get('split', '')}".rstrip(", ")
    text = f"{source}: {counted(readable, 'image')}"
    if chosen < len(images):
        text += f" (a random {chosen} of {len(images)}, seed {SUBSET_SEED})"
    if readable < chosen:
        text += f", {chosen - readable} unreadable left out"
    return text


def join_labels(
    kind: FeatureKind,
    images: Any,
    features: SplitFeatures,
    backbone: Backbone,
    sources: tuple[str, ...],
    device: torch.device,
) -> ImageFeatures | PatchFeatures:
    """Return the features of the readable images of a split with their labels or masks."""
    rows = np.flatnonzero(features.readable)
    indices, classes = features.indices[rows], tuple(images.classes)
    if len(rows) < 2:
        raise ValueError(f"expected at least 2 readable images in each split, got {len(rows)}")
    if kind == "image":
        joined_NF = np.concatenate([features.arrays[source][rows] for source in sources], axis=1)
        labels_N = np.asarray(images.labels)[indices].astype(np.int64)
        return ImageFeatures(torch.from_numpy(joined_NF).to(device), labels_N, classes)
    features_NPF = features.arrays["patches"]
    if len(rows) < len(features_NPF):
        features_NPF = features_NPF[rows]
    names = tuple(printable_name(images.names[index]) for index in indices)
    return PatchFeatures(features_NPF, backbone.grid, lambda i: images.read(int(indices[i]))[1], names, classes, device)
