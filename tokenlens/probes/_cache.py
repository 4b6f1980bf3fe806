"""Features of one set of images, computed once and kept on disk under a key of everything that they depend on."""

# Shapes: N images, P patches, F channels of a feature.

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tokenlens.images.decoding import UnreadableImageError, pixel_sha256
from tokenlens.images.items import Record, printable
from tokenlens.images.preprocessing import Batch, Collated, Ready, Skipped, collate, prepare
from tokenlens.probes._features import Backbone, Kind
from tokenlens.storage.run_folder import check_manifest, writing

FORMAT = 1
"""Of what is kept: features of another format are computed again."""

LOOKED_AT = 16
"""Images that are decoded and compared before kept features are taken: names do not say whether a picture changed."""

_INDEX = "index.json"


class Images(Protocol):
    """One split of a data set, as ``tokenlens.images.labelled.classes`` opens it."""

    names: Sequence[str]
    classes: tuple[str, ...]
    description: dict[str, Any]

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Features:
    """Of the N images that were asked for.

    Args:
        arrays: ``"cls"``, ``"patch_mean"`` or ``"pixels"`` (N, F) in float32, or ``"patches"`` (N, P, F) in float16
            (float32 from a model without a final norm, whose channels may leave the range of float16). Memory-mapped
            where they are kept. Rows of unreadable images are zero.
        places: (N,) which images of the split these are.
        readable: (N,) bool.
        skipped: ``{"name", "reason"}`` of each unreadable image.
        seconds: that computing them took; 0 where they were kept.
        folder: where they are kept; None where they are not.
    """

    arrays: Mapping[str, np.ndarray]
    places: np.ndarray
    readable: np.ndarray
    skipped: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    folder: Path | None = None


def cache_folder() -> Path:
    """Where features are kept: ``features`` in ``$TOKENLENS_CACHE``, or in ``tokenlens`` of the user's cache folder."""
    own = os.environ.get("TOKENLENS_CACHE")
    if own:
        return Path(own).expanduser() / "features"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenlens" / "features"


def features_of(
    backbone: Backbone,
    kind: Kind,
    images: Images,
    read: Callable[[int], Image.Image],
    places: np.ndarray,
    *,
    batch_size: int,
    workers: int,
    cache: bool,
    where: str = "",
    progress: Callable[[int], None] | None = None,
) -> Features:
    """Features of some images of a split, from the cache or computed now.

    Args:
        backbone: what computes them.
        kind: one vector for each image, or its patch grid.
        images: the split.
        read: the image of a number, as RGB; UnreadableImageError where it cannot be.
        places: (N,) which images of the split.
        batch_size: images per forward pass.
        workers: processes that decode.
        cache: whether to look in the cache, and to keep there what was computed.
        where: the absolute path of the data.
        progress: called with the number of images done.

    Raises:
        ValueError: if no image is readable, or a feature is NaN or infinite.
        OSError: if the disk is full; nothing half written is left behind.
    """
    prepared = _Prepared(images.names, read, places, backbone)
    if not cache:
        arrays, readable, skipped, seconds, _ = _compute(prepared, kind, batch_size, workers, progress, _in_memory)
        return Features(arrays, places, readable, skipped, seconds)
    folder = cache_folder() / _key(backbone, kind, images, places, where)
    kept = _kept(folder, prepared, places)
    if kept is not None:
        return kept
    with _storing(folder) as unfinished:

        def on_disk(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            return np.lib.format.open_memmap(unfinished / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

        arrays, readable, skipped, seconds, looked_at = _compute(prepared, kind, batch_size, workers, progress, on_disk)
        names = sorted(arrays)
        for array in arrays.values():
            assert isinstance(array, np.memmap)
            array.flush()
        index = {
            "format": FORMAT,
            "arrays": names,
            "skipped": skipped,
            "unreadable": np.flatnonzero(~readable).tolist(),
            "looked_at": looked_at,
            "identity": backbone.identity,
            "data": images.description,
        }
        text = json.dumps(index, indent=1, ensure_ascii=False)
        (unfinished / _INDEX).write_text(text, encoding="utf-8", errors="backslashreplace")
    return Features(_mapped(folder, names), places, readable, skipped, seconds, folder)


class _Prepared(Dataset[Ready | Skipped]):
    """The images that are asked for, ready for the backbone."""

    def __init__(
        self, names: Sequence[str], read: Callable[[int], Image.Image], places: np.ndarray, backbone: Backbone
    ) -> None:
        self.names, self.read, self.places, self.backbone = names, read, places, backbone

    def __len__(self) -> int:
        return len(self.places)

    def record(self, position: int) -> Record:
        """An image as it came out of its source."""
        place = int(self.places[position])
        name = printable(self.names[place])
        try:
            return Record(name, self.read(place))
        except UnreadableImageError as error:
            return Record(name, reason=str(error))

    def __getitem__(self, position: int) -> Ready | Skipped:
        return prepare(self.record(position), position, self.backbone.transform, self.backbone.image_size)


def _in_memory(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.zeros(shape, dtype)


def _compute(
    prepared: _Prepared,
    kind: Kind,
    batch_size: int,
    workers: int,
    progress: Callable[[int], None] | None,
    place_for: Callable[[str, tuple[int, ...], Any], np.ndarray],
) -> tuple[dict[str, np.ndarray], np.ndarray, list[dict[str, str]], float, dict[str, str]]:
    started = time.perf_counter()
    count, backbone = len(prepared), prepared.backbone
    arrays: dict[str, np.ndarray] = {}
    readable = np.zeros(count, dtype=bool)
    skipped: list[dict[str, str]] = []
    look = set(_looked_at(count))
    looked_at: dict[str, str] = {}
    # A DataLoader draws its workers' seed from the global random state, unless it is given a generator.
    loader: DataLoader[Collated] = DataLoader(
        prepared,
        batch_size,
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),  # type: ignore[arg-type]
    )
    done = 0
    for batch, left_out in loader:
        skipped += [{"name": one.name, "reason": one.reason} for one in left_out]
        done += len(left_out)
        if batch is not None:
            for name, part in backbone.features(batch.images).items():
                _check_finite(part, batch, backbone.name)
                if name not in arrays:
                    half = kind == "patches" and _fits_half(backbone)
                    arrays[name] = place_for(name, (count, *part.shape[1:]), np.float16 if half else np.float32)
                arrays[name][batch.indices] = part.cpu().numpy()
            readable[batch.indices] = True
            looked_at |= {str(i): digest for i, digest in zip(batch.indices, batch.hashes, strict=True) if i in look}
            done += len(batch.indices)
        if progress is not None:
            progress(done)
    if not readable.any():
        first = "; ".join(f"{one['name']}: {one['reason']}" for one in skipped[:3])
        raise ValueError(f"none of the {count} images could be read ({first}{', …' if count > 3 else ''})")
    return arrays, readable, skipped, time.perf_counter() - started, looked_at


def _fits_half(backbone: Backbone) -> bool:
    return getattr(backbone, "norm", None) is not None


def _check_finite(part: torch.Tensor, batch: Batch, model: str) -> None:
    if bool(torch.isfinite(part.sum(dtype=torch.float64 if part.device.type != "mps" else torch.float32))):
        return
    bad = (~torch.isfinite(part.flatten(1)).all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"NaN or infinity in the features of {model}, first for image {batch.names[bad[0]]!r}; no number made of "
            "them would mean anything. Check the weights and the images, and try without --amp."
        )


# The cache


def _key(backbone: Backbone, kind: Kind, images: Images, places: np.ndarray, where: str) -> str:
    everything = {
        "format": FORMAT,
        "kind": kind,
        "backbone": backbone.identity,
        "data": images.description,
        "where": where,
        "places": hashlib.sha256(places.astype("<i8").tobytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:40]


def _looked_at(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, LOOKED_AT).astype(int)).tolist()


def _kept(folder: Path, prepared: _Prepared, places: np.ndarray) -> Features | None:
    """What the cache holds; None where it holds nothing, something damaged, or features of other pictures."""
    try:
        check_manifest(folder, [_INDEX])
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        arrays = _mapped(folder, index["arrays"])
    except (OSError, ValueError, KeyError):
        return None
    for position, digest in index["looked_at"].items():
        content = prepared.record(int(position)).content
        if not isinstance(content, Image.Image) or pixel_sha256(content) != digest:
            return None
    readable = np.ones(len(places), dtype=bool)
    readable[index["unreadable"]] = False
    return Features(arrays, places, readable, index["skipped"], folder=folder)


def _mapped(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}


@contextmanager
def _storing(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its place when all is written; an error says where the cache is."""
    shutil.rmtree(folder, ignore_errors=True)  # damaged, or of pictures that have changed: the key is ours
    try:
        with writing(folder) as unfinished:
            yield unfinished
    except OSError as error:
        if error.filename is None:
            error.filename = str(folder.parent)
        raise
