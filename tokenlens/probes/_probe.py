"""``probe``: features of two splits, a head trained on the one and tested on the other."""

# Shapes: N images, F channels of a feature, P patches.

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tokenlens.catalog import Catalog
from tokenlens.families.base import Family
from tokenlens.images.items import printable
from tokenlens.models.loading import load_model
from tokenlens.probes._cache import Features, features_of
from tokenlens.probes._features import RAW_PIXELS, Backbone, FrozenModel, Kind, RawPixels
from tokenlens.probes._result import ProbeResult
from tokenlens.probes.base import Grids, Probe, Vectors
from tokenlens.statistics.bootstrap import DRAWS
from tokenlens.storage.provenance import made_by

probes = Catalog("tokenlens.probes", "probe", base="Probe")

SUBSET_SEED = 0
"""Of the images that ``limit`` takes: the same ones whatever the seed, to stay comparable image by image."""

TEXT_OF_INTERVAL = f"95 %, percentiles of {DRAWS} draws of the test images with replacement (seed 0)"

SOURCES = ("cls", "patch_mean", "both")
"""What of a model stands for an image: its CLS token, the mean of its patches, or both side by side."""


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
    batch_size: int = 32,
    workers: int = 0,
    device: str = "auto",
    amp: bool = False,
    seed: int = 0,
    limit: int | None = None,
    family: Family | None = None,
    cache: bool = True,
    progress: Callable[[int, int | None], None] | None = None,
) -> ProbeResult:
    """Train a small head on a frozen model's features and test it; docs/probes.md has the protocols.

    Args:
        model: as for ``analyze``, or ``"raw_pixels"``: no model, for comparison.
        task: a name of ``tokenlens list probes``: ``"knn"``, ``"linear"``, ``"segmentation"``.
        data: what ``tokenlens.images.labelled.classes.open_labelled`` opens; for segmentation a folder of images and masks. Or the two
            splits themselves, (train, test), as these functions give them.
        source: ``"cls"``, ``"patch_mean"`` or ``"both"``, for an image; by default CLS where the model has it. For
            segmentation always the patches.
        blocks: take ``resid_post`` of these blocks through the final norm, side by side; by default the output of the
            final norm. Negative numbers count from the end.
        checkpoint, pretrained, img_size, device, amp, family: as for ``analyze``.
        batch_size: images per forward pass; the number does not depend on it.
        workers: processes that decode images.
        seed: of random weights, of what is held out, and of the order of training.
        limit: at most this many images of each split, always the same ones.
        cache: keep the features on disk for the next probe, and use those that are kept.
        progress: called with the images done and in all, over both splits.

    Raises:
        LookupError: for an unknown model, probe or block, and a source that the model does not have.
        ValueError: for data without labels, splits whose classes differ, images of which none is readable, and
            features that are not finite.
    """
    started = time.perf_counter()
    wanted: Probe = probes.get(task)()
    _check(wanted, task, source, limit, batch_size, workers)
    splits = _opened(wanted.kind, data)
    where = os.path.abspath(data) if isinstance(data, str | os.PathLike) and Path(data).exists() else ""
    backbone, target = _backbone(
        model,
        wanted.kind,
        source,
        blocks,
        checkpoint=checkpoint,
        pretrained=pretrained,
        img_size=img_size,
        device=device,
        amp=amp,
        seed=seed,
        family=family,
    )
    chosen = _source(backbone, wanted.kind, source)
    places = [_subset(len(images), limit) for images in splits]
    total, done = sum(map(len, places)), 0
    features = []
    for images, these in zip(splits, places, strict=True):

        def tell(count: int, before: int = done) -> None:
            if progress is not None:
                progress(before + count, total)

        read = images.read if wanted.kind == "image" else lambda place, images=images: images.read(place)[0]
        features.append(
            features_of(
                backbone,
                wanted.kind,
                images,
                read,
                these,
                batch_size=batch_size,
                workers=workers,
                cache=cache,
                where=where,
                progress=tell,
            )
        )
        done += len(these)
    train, test = (
        _samples(wanted.kind, images, found, backbone, chosen, target)
        for images, found in zip(splits, features, strict=True)
    )
    names = tuple(printable(splits[1].names[place]) for place in features[1].places[features[1].readable])
    begun = time.perf_counter()
    judgement = wanted.judge(train, test, names, seed)
    now = time.perf_counter()
    return ProbeResult(
        value=judgement.value,
        ci_low=judgement.ci_low,
        ci_high=judgement.ci_high,
        n=len(test),
        unit=wanted.unit,
        protocol={
            "probe": probes.describe(task),
            **backbone.protocol,
            **_source_in_words(wanted.kind, chosen, backbone),
            **{
                f"{name} images": _split_in_words(images, found, limit)
                for name, images, found in zip(("training", "test"), splits, features, strict=True)
            },
            "classes": len(test.classes),
            **judgement.protocol,
            "interval": TEXT_OF_INTERVAL,
            "seed": seed,
        },
        per_image=judgement.per_image,
        table=judgement.table,
        model=backbone.name,
        task=task,
        untrained=backbone.untrained,
        provenance={
            "identity": backbone.identity,
            "data": [images.description for images in splits],
            "skipped": [
                {"split": split, **one}
                for split, found in zip(("train", "test"), features, strict=True)
                for one in found.skipped
            ],
            "batch_size": batch_size,
            "limit": limit,
            "seed": seed,
            **made_by("probe"),
            "seconds": {
                "features": round(sum(found.seconds for found in features), 3),
                "probe": round(now - begun, 3),
                "all": round(now - started, 3),
            },
            "features_kept_in": [None if found.folder is None else str(found.folder) for found in features],
        },
    )


def _check(wanted: Probe, task: str, source: str | None, limit: int | None, batch_size: int, workers: int) -> None:
    if wanted.kind == "patches" and source not in (None, "patches"):
        raise ValueError(f"the probe {task} always takes the patch tokens; leave source={source!r} out")
    if wanted.kind == "image" and source not in (None, *SOURCES):
        raise ValueError(f"source is {', '.join(SOURCES)}, got {source!r}")
    if (limit is not None and limit < 2) or batch_size < 1 or workers < 0:
        raise ValueError(
            f"expected limit ≥ 2, batch_size ≥ 1 and workers ≥ 0, got limit={limit}, batch_size={batch_size}, "
            f"workers={workers}"
        )


def _opened(kind: Kind, data: Any) -> tuple[Any, Any]:
    """Training and test split."""
    if isinstance(data, tuple):
        train, test = data
    elif kind == "image":
        from tokenlens.images.labelled.classes import open_labelled

        train, test = open_labelled(data, split="train"), open_labelled(data, split="test")
    else:
        from tokenlens.images.labelled.masks import open_masks

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


def _backbone(
    model: str | nn.Module,
    kind: Kind,
    source: str | None,
    blocks: Sequence[int] | None,
    *,
    checkpoint: str | os.PathLike[str] | None,
    pretrained: bool,
    img_size: int | tuple[int, int] | None,
    device: str,
    amp: bool,
    seed: int,
    family: Family | None,
) -> tuple[Backbone, torch.device]:
    if isinstance(model, str) and model == RAW_PIXELS:
        given = {"source": source, "blocks": blocks, "checkpoint": checkpoint}
        if meaningless := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{RAW_PIXELS} is no model, so it has no {' or '.join(meaningless)}; leave it out")
        return RawPixels(kind, img_size), torch.device("cpu")
    loaded = load_model(
        model, pretrained=pretrained, checkpoint=checkpoint, img_size=img_size, device=device, seed=seed, family=family
    )
    return FrozenModel(loaded, kind, blocks, amp), loaded.device


def _source(backbone: Backbone, kind: Kind, source: str | None) -> tuple[str, ...]:
    """Names of the parts that are put side by side."""
    if kind == "patches":
        return ("patches",)
    if source is None:
        return backbone.sources[:1]
    parts = ("cls", "patch_mean") if source == "both" else (source,)
    if not set(parts) <= set(backbone.sources):
        raise LookupError(
            f"{backbone.name} has no CLS token, so source={source!r} cannot be had; available: "
            f"{', '.join(backbone.sources)}"
        )
    return parts


def _source_in_words(kind: Kind, parts: tuple[str, ...], backbone: Backbone) -> dict[str, str]:
    if kind == "patches":
        return {"patch grid": f"{backbone.grid[0]}×{backbone.grid[1]}"}
    words = {"cls": "CLS token", "patch_mean": "mean of the patch tokens", "pixels": "pixels"}
    return {"source": " ‖ ".join(words[part] for part in parts)}


def _split_in_words(images: Any, found: Features, limit: int | None) -> str:
    readable = int(found.readable.sum())
    described = f"{images.description.get('source', 'images')}, {images.description.get('split', '')}".rstrip(", ")
    text = f"{described}: {readable} images"
    if limit is not None and limit < len(images):
        text += f" (a random {len(found.places)} of {len(images)}, seed {SUBSET_SEED})"
    if readable < len(found.places):
        text += f", {len(found.places) - readable} unreadable left out"
    return text


def _subset(count: int, limit: int | None) -> np.ndarray:
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.RandomState(SUBSET_SEED).permutation(count)[:limit])


def _samples(
    kind: Kind, images: Any, found: Features, backbone: Backbone, parts: tuple[str, ...], device: torch.device
) -> Any:
    rows = np.flatnonzero(found.readable)
    places = found.places[rows]
    if len(rows) < 2:
        raise ValueError(f"expected at least 2 readable images in each split, got {len(rows)}")
    if kind == "image":
        joined_NF = np.concatenate([found.arrays[part][rows] for part in parts], axis=1)
        features_NF = torch.from_numpy(joined_NF).to(device)
        return Vectors(features_NF, np.asarray(images.labels)[places].astype(np.int64), tuple(images.classes))
    features_NPF = found.arrays["patches"]
    if len(rows) < len(found.places):
        features_NPF = features_NPF[rows]
    names = tuple(printable(images.names[place]) for place in places)
    return Grids(
        features_NPF, backbone.grid, lambda i: images.read(int(places[i]))[1], names, tuple(images.classes), device
    )
