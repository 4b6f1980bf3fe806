"""The images of an analysis: from a folder, the sample set, a tensor, a data set or a stream, in a fixed order."""

# Shapes: B images of a batch, N images, H height, W width.

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, SequentialSampler

from tokenlens.images.decoding import find_images
from tokenlens.images.items import (
    UNREADABLE,
    DatasetRecords,
    FileRecords,
    ItemStream,
    Record,
    Records,
    SampleRecords,
    TensorRecords,
    image_of,
)
from tokenlens.images.preprocessing import Batch, Collated, Ready, Skipped, Transform, check_tensor, collate, prepare
from tokenlens.images.sample import PHOTOGRAPHS, VIEWS
from tokenlens.images.streams import HfdsRecords, WdsRecords
from tokenlens.storage.hashing import tensor_sha256

__all__ = ["Batch", "ImageSource", "batches", "open_images"]

FORMS = "a folder of images, an image file, sample, hfds/NAME[:SPLIT] or wds/SHARDS"

SAMPLE_NOTE = (
    f"The images are views of {len(PHOTOGRAPHS)} photographs. The intervals take them for independent images, so as "
    "statements about other photographs they are too narrow (2 to 3 times for cosines of DINOv2 ViT-S). Use images of "
    "your own for numbers to quote."
)


@dataclass
class ImageSource:
    """Images in a fixed order; ``batches`` goes through them.

    Args:
        description: where they come from and which of them are taken, for people.
        total: how many there are, unreadable ones included; None where only going through them tells.
        note: what a reader of the numbers must know about these images, or empty.
        skipped: ``{"name", "reason"}`` of each unreadable image that the last ``batches`` met (on this rank).
    """

    description: str
    total: int | None
    note: str = ""
    skipped: list[dict[str, str]] = field(default_factory=list)
    _records: Records | None = field(default=None, repr=False)
    _order: np.ndarray | None = field(default=None, repr=False)
    _stream: Iterable[Record] | None = field(default=None, repr=False)
    _loader: DataLoader[Any] | None = field(default=None, repr=False)
    _limit: int | None = field(default=None, repr=False)
    _transform: Transform | None = field(default=None, repr=False)
    _image_size: tuple[int, int] | None = field(default=None, repr=False)


def open_images(
    images: str | os.PathLike[str] | Tensor | Dataset[Any] | DataLoader[Any],
    *,
    transform: Transform | None = None,
    limit: int | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
) -> ImageSource:
    """Open a source of images without reading them.

    Args:
        images: one of

            - a folder: all image files in it and below it, sorted by relative path, hidden ones left out;
            - an image file;
            - ``"sample"``: seeded views (64, or ``limit``) of photographs that come with the dependencies;
            - ``"hfds/NAME[:SPLIT]"``: a Hugging Face data set, of the hub or on disk;
            - ``"wds/SHARDS"``: webdataset shards, a folder of them or a pattern with braces;
            - a tensor (N, 3, H, W), already preprocessed;
            - a PyTorch ``Dataset`` or anything else with ``len`` and ``[]``, whose items are PIL images, tensors
              (preprocessed), tuples (image, label) or dicts with ``"image"`` or ``"pixel_values"``;
            - a ``DataLoader``, taken as it is with its own batches.
        transform: RGB image → (3, H, W), usually ``LoadedModel.transform()``; tensors never pass through it. By default
            timm's ImageNet evaluation transform at ``image_size``, or 224.
        limit: take this many images: a random subset in the usual order, chosen by ``seed``; of a stream or a
            DataLoader the first ones. ``description`` says which.
        seed: of the subset and of the sample set's views.
        image_size: (height, width) that the model takes; images that arrive as tensors are checked against it.

    EXIF orientation is not applied and transparency is dropped, as timm and torchvision do.

    Raises:
        ValueError: for a missing path, a folder without images, a tensor of the wrong shape, dtype or with values that
            are not finite, a package that is missing, a limit below 1.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit is a number of images, at least 1, got {limit!r}")
    if transform is None:
        from timm.data import create_transform

        transform = create_transform((3, *(image_size or (224, 224))), is_training=False)
    common: dict[str, Any] = {"_transform": transform, "_image_size": image_size}
    if isinstance(images, DataLoader):
        return _loaded(images, limit, common)
    if isinstance(images, IterableDataset):
        return _streamed(f"{type(images).__qualname__} (iterable)", ItemStream(images), limit, common)
    if isinstance(images, Tensor):
        check_tensor(images, image_size)
        shape = "×".join(map(str, images.shape))
        return _indexed(f"tensor {shape}", TensorRecords(images.detach()), limit, seed, common)
    if isinstance(images, str | os.PathLike):
        return _named(os.fspath(images), limit, seed, common)
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return _indexed(f"data set {type(images).__qualname__}", DatasetRecords(images), limit, seed, common)
    raise ValueError(
        f"images are {FORMS}, a tensor (N, 3, H, W), a Dataset with a length or a DataLoader; got "
        f"{type(images).__qualname__}"
    )


def _named(name: str, limit: int | None, seed: int, common: dict[str, Any]) -> ImageSource:
    if name == "sample":
        views = limit or VIEWS
        photographs = ", ".join(path.rpartition("/")[2] for _, path in PHOTOGRAPHS)
        description = f"sample: {views} views (crops, seed {seed}) of {len(PHOTOGRAPHS)} photographs: {photographs}"
        source = _indexed(description, SampleRecords(views, seed), None, seed, common)
        source.note = SAMPLE_NOTE
        return source
    prefix, _, rest = name.partition("/")
    if prefix.lower() == "hfds":
        rows = HfdsRecords(rest)
        return _indexed(rows.description, rows, limit, seed, common)
    if prefix.lower() == "wds":
        shards = WdsRecords(rest)
        return _streamed(shards.description, shards, limit, common)
    path = Path(name).expanduser()
    if path.is_dir():
        return _indexed(f"folder {path}", FileRecords(find_images(path), path), limit, seed, common)
    if path.is_file():
        if path.suffix.lower() == ".tar":
            raise ValueError(f"{path} is an archive; webdataset shards are read with wds/{path}")
        return _indexed(f"image {path}", FileRecords([path], path.parent), limit, seed, common)
    raise ValueError(f"there is no {path}; images are {FORMS}")


def _indexed(description: str, records: Records, limit: int | None, seed: int, common: dict[str, Any]) -> ImageSource:
    count = len(records)
    if count == 0:
        raise ValueError(f"{description} is empty; expected at least one image")
    order = np.arange(count)
    if limit is not None and limit < count:
        # RandomState: NumPy promises the same numbers in every version, which it does not for Generator.
        order = np.sort(np.random.RandomState(seed % 2**32).permutation(count)[:limit])
        description += f", a random {limit} of {count} images (seed {seed})"
    return ImageSource(description, len(order), _records=records, _order=order, **common)


def _streamed(description: str, stream: Iterable[Record], limit: int | None, common: dict[str, Any]) -> ImageSource:
    if limit is not None:
        description += f", the first {limit} images"
    return ImageSource(description, None, _stream=stream, _limit=limit, **common)


def _loaded(loader: DataLoader[Any], limit: int | None, common: dict[str, Any]) -> ImageSource:
    description = f"DataLoader over {type(loader.dataset).__qualname__}"
    total = len(loader.dataset) if hasattr(loader.dataset, "__len__") and not loader.drop_last else None
    if limit is not None:
        description += f", the first {limit} images"
        total = None if total is None else min(total, limit)
    return ImageSource(description, total, _loader=loader, _limit=limit, **common)


class _Prepared(Dataset[Ready | Skipped]):
    """The images of an indexed source, ready for the model."""

    def __init__(self, source: ImageSource) -> None:
        assert source._records is not None
        assert source._order is not None
        assert source._transform is not None
        self.records, self.order = source._records, source._order
        self.prepare = partial(prepare, transform=source._transform, image_size=source._image_size)

    def __getitem__(self, index: int) -> Ready | Skipped:
        return self.prepare(self.records[int(self.order[index])], index)


class _ShardedBatches:
    """Index lists of whole batches: rank r of W takes batches r, r + W, …"""

    def __init__(self, total: int, batch_size: int, rank: int, world_size: int) -> None:
        self.starts = range(rank * batch_size, total, batch_size * world_size)
        self.total, self.batch_size = total, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for start in self.starts:
            yield list(range(start, min(start + self.batch_size, self.total)))

    def __len__(self) -> int:
        return len(self.starts)


class _PreparedStream(IterableDataset[Collated]):
    """The batches of a stream that are this rank's; the others' are read past without being decoded."""

    def __init__(self, source: ImageSource, batch_size: int, rank: int, world_size: int) -> None:
        assert source._stream is not None
        assert source._transform is not None
        self.stream, self.limit = source._stream, source._limit
        self.prepare = partial(prepare, transform=source._transform, image_size=source._image_size)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __iter__(self) -> Iterator[Collated]:
        records = enumerate(islice(self.stream, self.limit))
        number = 0
        while chunk := list(islice(records, self.batch_size)):
            if number % self.world_size == self.rank:
                yield collate(self.prepare(record, index) for index, record in chunk)
            number += 1


def _in_order(loader: DataLoader[Any]) -> bool:
    sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    return isinstance(sampler, SequentialSampler) or isinstance(loader.dataset, IterableDataset)


def _loader_batches(source: ImageSource, rank: int, world_size: int) -> Iterator[Collated]:
    """A DataLoader's own batches, each world_size-th of them."""
    loader = source._loader
    assert loader is not None
    if world_size > 1 and not _in_order(loader):
        kind = "is sharded already" if isinstance(loader.sampler, DistributedSampler) else "may change its order"
        raise ValueError(f"the DataLoader {kind}; for several ranks hand over one with shuffle=False and no sampler")
    start, number = 0, 0
    iterator = iter(loader)
    while source._limit is None or start < source._limit:
        try:
            images = image_of(next(iterator))
        except StopIteration:
            return
        except UNREADABLE as error:
            raise ValueError(
                f"the DataLoader failed at batch {number}: {error}. Hand over its data set: unreadable images of a "
                "data set are skipped and counted"
            ) from error
        if not isinstance(images, Tensor):
            raise ValueError(f"the DataLoader's batches must be tensors (B, 3, H, W), got {type(images).__qualname__}")
        if source._limit is not None:
            images = images[: source._limit - start]
        if number % world_size == rank:
            check_tensor(images, source._image_size, what=f"batch {number} of the DataLoader")
            indices = list(range(start, start + len(images)))
            yield (
                Batch(
                    images=images.detach().float(),
                    indices=indices,
                    names=[f"item {index}" for index in indices],
                    hashes=[tensor_sha256(image) for image in images],
                ),
                [],
            )
        start, number = start + len(images), number + 1


def batches(
    source: ImageSource, batch_size: int, workers: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Go through a source, or through one rank's part of it.

    Batches are cut from the source's order before anything is read, and rank r of W takes the batches r, r + W, …: what
    is in a batch depends neither on ranks nor on workers. Unreadable images leave gaps in their batches and are listed
    in ``source.skipped``; a batch of which nothing is left is not given out. The global random state is left alone,
    except by a DataLoader of your own.

    Args:
        source: from ``open_images``.
        batch_size: images per batch; a DataLoader keeps its own.
        workers: processes that read and decode. A stream is read by at most one, which keeps its order.
        rank: this process's number among ``world_size``.
        world_size: number of processes that share the source.

    Raises:
        ValueError: if no image at all was readable (in one process; with several, the caller sums up over ranks), or a
            data set gives what is no image.
    """
    if batch_size < 1 or workers < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"expected batch_size ≥ 1, workers ≥ 0 and 0 ≤ rank < world_size, got batch_size={batch_size}, "
            f"workers={workers}, rank={rank}, world_size={world_size}"
        )
    return _go_through(source, _collated(source, batch_size, workers, rank, world_size), world_size)


def _collated(source: ImageSource, batch_size: int, workers: int, rank: int, world_size: int) -> Iterable[Collated]:
    if source._loader is not None:
        return _loader_batches(source, rank, world_size)
    # A DataLoader draws its workers' seed from the global random state, unless it is given a generator.
    generator = torch.Generator()
    if source._stream is not None:
        stream = _PreparedStream(source, batch_size, rank, world_size)
        return DataLoader(stream, batch_size=None, num_workers=min(workers, 1), generator=generator)
    assert source.total is not None
    on_device = isinstance(source._records, TensorRecords)  # CUDA tensors do not go into forked processes
    return DataLoader(
        _Prepared(source),
        batch_sampler=_ShardedBatches(source.total, batch_size, rank, world_size),
        collate_fn=collate,
        num_workers=0 if on_device else workers,
        generator=generator,
    )


def _go_through(source: ImageSource, collated: Iterable[Collated], world_size: int) -> Iterator[Batch]:
    source.skipped.clear()
    given = 0
    for batch, skipped in collated:
        for item in skipped:
            if item.refused:
                raise ValueError(item.reason)
            source.skipped.append({"name": item.name, "reason": item.reason})
        if batch is not None:
            given += len(batch.indices)
            yield batch
    if given == 0 and world_size == 1:
        named = "; ".join(f"{item['name']}: {item['reason']}" for item in source.skipped[:3])
        raise ValueError(
            f"no readable image in {source.description}: "
            + (f"all {len(source.skipped)} are unreadable ({named})" if source.skipped else "it is empty")
        )
