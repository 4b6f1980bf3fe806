"""Read the images of a source in batches, in one process or in several."""

# Shapes: B images of a batch, H height, W width.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, SequentialSampler

from tokenlens.images.preprocessing import Batch, Collated, PreparedImage, SkippedImage, collate, prepare
from tokenlens.images.pytorch import READ_ERRORS, TensorImages, check_tensor, describe_kind, extract_image
from tokenlens.images.sources import ImageSource
from tokenlens.storage.hashing import tensor_sha256
from tokenlens.storage.wording import counted


def iterate_batches(
    source: ImageSource, batch_size: int, workers: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Iterate over the batches of a source, or over one rank's share of them.

    The source's order is cut into batches before anything is read, and rank r of W takes the batches r, r + W, …, so
    the content of a batch depends neither on ranks nor on workers. Unreadable images leave gaps in their batches and
    are listed in ``source.skipped``; a batch without any readable image is left out. The global random state does not
    change, unless the source is a DataLoader that changes it.

    Args:
        source: from ``open_images``.
        batch_size: images per batch; a DataLoader keeps its own.
        workers: processes that read and decode; a stream uses at most one, which keeps its order.
        rank: this process's number among ``world_size``.
        world_size: number of processes that share the source.

    Raises:
        ValueError: if no image is readable (with several processes the caller must check this over all ranks), or a
            data set provides something other than images.
    """
    if batch_size < 1 or workers < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"expected batch_size ≥ 1, workers ≥ 0 and 0 ≤ rank < world_size, got batch_size={batch_size}, "
            f"workers={workers}, rank={rank}, world_size={world_size}"
        )
    return _report_skipped(source, _collated_batches(source, batch_size, workers, rank, world_size), world_size)


def _report_skipped(source: ImageSource, collated: Iterable[Collated], world_size: int) -> Iterator[Batch]:
    """Yield the batches, and list skipped images in ``source.skipped``."""
    source.skipped.clear()
    empty = True
    for batch, skipped in collated:
        for image in skipped:
            if image.invalid:
                raise ValueError(image.reason)
            source.skipped.append({"name": image.name, "reason": image.reason})
        if batch is not None:
            empty = False
            yield batch
    if empty and world_size == 1:
        if len(source.skipped) == 1 and source.description.startswith("image "):
            raise ValueError(f"{source.description} cannot be read: {source.skipped[0]['reason']}")
        first = "; ".join(f"{image['name']}: {image['reason']}" for image in source.skipped[:3])
        raise ValueError(
            f"no readable image in {source.description}: "
            + (f"{counted(len(source.skipped), 'image')} unreadable ({first})" if source.skipped else "it is empty")
        )


def _collated_batches(
    source: ImageSource, batch_size: int, workers: int, rank: int, world_size: int
) -> Iterable[Collated]:
    if isinstance(source.images, DataLoader):
        return _loader_batches(source.images, source, rank, world_size)
    # A DataLoader draws its workers' seed from the global random state, unless it is given a generator.
    generator = torch.Generator()
    if source.order is None:
        stream = _StreamBatches(source, batch_size, rank, world_size)
        return DataLoader(stream, batch_size=None, num_workers=min(workers, 1), generator=generator)
    index_lists = BatchSampler(range(len(source.order)), batch_size, drop_last=False)
    return DataLoader(
        _PreparedImages(source),
        batch_sampler=islice(index_lists, rank, None, world_size),
        collate_fn=collate,
        num_workers=0 if isinstance(source.images, TensorImages) else workers,  # CUDA tensors cannot enter a fork
        generator=generator,
    )


class _PreparedImages(Dataset[PreparedImage | SkippedImage]):
    """The images of an indexed source, in the model's form."""

    def __init__(self, source: ImageSource) -> None:
        self.images: Any = source.images
        self.order: Any = source.order
        self.prepare = partial(prepare, transform=source.transform, image_size=source.image_size)

    def __getitem__(self, index: int) -> PreparedImage | SkippedImage:
        return self.prepare(self.images[int(self.order[index])], index)


class _StreamBatches(IterableDataset[Collated]):
    """This rank's batches of a stream; the images of other ranks are read but not decoded."""

    def __init__(self, source: ImageSource, batch_size: int, rank: int, world_size: int) -> None:
        self.stream: Any = source.images
        self.limit = source.limit
        self.prepare = partial(prepare, transform=source.transform, image_size=source.image_size)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __iter__(self) -> Iterator[Collated]:
        images = enumerate(islice(self.stream, self.limit))
        number = 0
        while chunk := list(islice(images, self.batch_size)):
            if number % self.world_size == self.rank:
                yield collate(self.prepare(image, index) for index, image in chunk)
            number += 1


def _loader_batches(loader: DataLoader[Any], source: ImageSource, rank: int, world_size: int) -> Iterator[Collated]:
    """Yield this rank's share of a DataLoader's own batches."""
    if world_size > 1 and not _is_sequential(loader):
        problem = "is sharded already" if isinstance(loader.sampler, DistributedSampler) else "may change its order"
        raise ValueError(f"the DataLoader {problem}; for several ranks pass one with shuffle=False and no sampler")
    start, number = 0, 0
    iterator = iter(loader)
    while source.limit is None or start < source.limit:
        try:
            images = extract_image(next(iterator))
        except StopIteration:
            return
        except READ_ERRORS as error:
            raise ValueError(
                f"the DataLoader failed at batch {number}: {error}. Pass its data set instead: then unreadable images "
                "are skipped and counted"
            ) from error
        if not isinstance(images, Tensor):
            raise ValueError(f"the DataLoader's batches must be tensors (B, 3, H, W), got {describe_kind(images)}")
        if source.limit is not None:
            images = images[: source.limit - start]
        if number % world_size == rank:
            check_tensor(images, source.image_size, f"batch {number} of the DataLoader")
            indices = list(range(start, start + len(images)))
            hashes = [tensor_sha256(image) for image in images]
            batch = Batch(
                images=images.detach().float(),
                indices=indices,
                names=[f"item {index}" for index in indices],
                hashes=hashes,
                pixel_hashes=hashes,
                dark=[False] * len(indices),
            )
            yield batch, []
        start, number = start + len(images), number + 1


def _is_sequential(loader: DataLoader[Any]) -> bool:
    sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    return isinstance(sampler, SequentialSampler) or isinstance(loader.dataset, IterableDataset)
