"""Extract the features of a set of images, computed once and cached on disk."""

# Shapes: N images, P patches, F channels of a feature.

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tokenlens.images.decoding import UnreadableImageError
from tokenlens.images.files import RawImage, printable_name
from tokenlens.images.preprocessing import Batch, PreparedImage, SkippedImage, collate, prepare
from tokenlens.probes._cache import FeatureCache
from tokenlens.probes._features import Backbone, FeatureKind


class ImageSplit(Protocol):
    """One split of a data set, as ``tokenlens.images.labelled`` opens it."""

    names: Sequence[str]
    classes: tuple[str, ...]
    description: dict[str, Any]

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class SplitFeatures:
    """Features of N images of a split.

    Args:
        arrays: ``"cls"``, ``"patch_mean"`` or ``"pixels"`` (N, F) in float32, or ``"patches"`` (N, P, F) in float16
            (float32 for a model without a final norm, whose channels may exceed the range of float16). Memory-mapped
            if cached. Rows of unreadable images are zero. ``"hashes"`` (N,) are 16 hexadecimal digits of the SHA-256 of
            each image's pixels after preprocessing.
        indices: (N,) numbers of these images in the split.
        readable: (N,) bool.
        skipped: ``{"name", "reason"}`` of each unreadable image.
        seconds: time to compute them; 0 if they were cached.
        folder: where they are cached; None without a cache.
    """

    arrays: Mapping[str, np.ndarray]
    indices: np.ndarray
    readable: np.ndarray
    skipped: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    folder: Path | None = None


def extract_features(
    backbone: Backbone,
    kind: FeatureKind,
    images: ImageSplit,
    read: Callable[[int], Image.Image],
    indices: np.ndarray,
    *,
    batch_size: int,
    workers: int,
    cache: bool,
    data_path: str = "",
    progress: Callable[[int], None] | None = None,
) -> SplitFeatures:
    """Return features of some images of a split, from the cache or computed now.

    Args:
        backbone: computes them.
        kind: one vector per image, or one per patch.
        images: the split.
        read: returns the image of a number in RGB, or raises UnreadableImageError.
        indices: (N,) numbers of the images in the split.
        batch_size: images per forward pass.
        workers: processes that decode images.
        cache: read features from the cache, and write new ones to it.
        data_path: the absolute path of the data; part of the cache's key.
        progress: called with the number of images that are done.

    Raises:
        ValueError: if no image is readable, or a feature is NaN or infinite.
        OSError: if the disk is full; no incomplete files are left behind.
    """
    split = _PreparedSplit(images.names, read, indices, backbone)
    if not cache:
        computed = _compute(split, kind, batch_size, workers, progress, _allocate)
        return SplitFeatures(computed.arrays, indices, computed.readable, computed.skipped, computed.seconds)
    stored = FeatureCache(backbone.identity, kind, images.description, indices, data_path)
    index = stored.read(split.pixels)
    if index is None:
        with stored.writing() as (allocate, write_index):
            computed = _compute(split, kind, batch_size, workers, progress, allocate)
            write_index(computed.skipped, computed.readable, computed.hashes)
        readable, skipped, seconds = computed.readable, computed.skipped, computed.seconds
    else:
        readable, skipped, seconds = np.ones(len(indices), dtype=bool), index["skipped"], 0.0
        readable[index["unreadable"]] = False
        if progress is not None:
            progress(len(indices))
    return SplitFeatures(stored.arrays(), indices, readable, skipped, seconds, stored.folder)


class _PreparedSplit(Dataset[PreparedImage | SkippedImage]):
    """Images of a split, transformed for the backbone."""

    def __init__(
        self, names: Sequence[str], read: Callable[[int], Image.Image], indices: np.ndarray, backbone: Backbone
    ) -> None:
        self.names, self.read, self.indices, self.backbone = names, read, indices, backbone

    def __len__(self) -> int:
        return len(self.indices)

    def pixels(self, position: int) -> Image.Image:
        """Return an image before the backbone's transform."""
        return self.read(int(self.indices[position]))

    def __getitem__(self, position: int) -> PreparedImage | SkippedImage:
        name = printable_name(self.names[int(self.indices[position])])
        try:
            image = RawImage(name, self.pixels(position))
        except UnreadableImageError as error:
            image = RawImage(name, reason=str(error))
        return prepare(image, position, self.backbone.transform, self.backbone.image_size)


@dataclass(frozen=True)
class _Computed:
    arrays: dict[str, np.ndarray]
    readable: np.ndarray
    skipped: list[dict[str, str]]
    hashes: list[str]
    seconds: float


def _allocate(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.zeros(shape, dtype)


def _compute(
    split: _PreparedSplit,
    kind: FeatureKind,
    batch_size: int,
    workers: int,
    progress: Callable[[int], None] | None,
    allocate: Callable[[str, tuple[int, ...], Any], np.ndarray],
) -> _Computed:
    started = time.perf_counter()
    count, backbone = len(split), split.backbone
    arrays: dict[str, np.ndarray] = {}
    readable = np.zeros(count, dtype=bool)
    skipped: list[dict[str, str]] = []
    hashes = [""] * count
    half = keeps_half(backbone, kind)
    # A DataLoader draws its workers' seed from the global random state, unless it is given a generator.
    generator = torch.Generator()
    loader = DataLoader(split, batch_size, num_workers=workers, collate_fn=collate, generator=generator)
    done = 0
    for batch, left_out in loader:
        skipped += [{"name": one.name, "reason": one.reason} for one in left_out]
        done += len(left_out)
        if batch is not None:
            for name, part in backbone.features(batch.images).items():
                _check_finite(part, batch, backbone.name)
                if name not in arrays:
                    arrays[name] = allocate(name, (count, *part.shape[1:]), np.float16 if half else np.float32)
                arrays[name][batch.indices] = part.cpu().numpy()
            if "hashes" not in arrays:
                arrays["hashes"] = allocate("hashes", (count,), "S16")
            arrays["hashes"][batch.indices] = [digest[:16].encode() for digest in batch.pixel_hashes]
            readable[batch.indices] = True
            for index, digest in zip(batch.indices, batch.hashes, strict=True):
                hashes[index] = digest
            done += len(batch.indices)
        if progress is not None:
            progress(done)
    if not readable.any():
        first = "; ".join(f"{one['name']}: {one['reason']}" for one in skipped[:3])
        raise ValueError(f"none of the {count} images could be read ({first}{', …' if count > 3 else ''})")
    return _Computed(arrays, readable, skipped, hashes, time.perf_counter() - started)


def keeps_half(backbone: Backbone, kind: FeatureKind) -> bool:
    """Return whether features are kept in float16, whose range may be too small without a final norm."""
    return kind == "patches" and getattr(backbone, "norm", None) is not None


def _check_finite(part: torch.Tensor, batch: Batch, model: str) -> None:
    if bool(torch.isfinite(part.sum(dtype=torch.float64 if part.device.type != "mps" else torch.float32))):
        return
    bad = (~torch.isfinite(part.flatten(1)).all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"NaN or infinity in the features of {model}, first for image {batch.names[bad[0]]!r}; no score can be "
            "computed from them. Check the weights and the images, and try without --amp."
        )
