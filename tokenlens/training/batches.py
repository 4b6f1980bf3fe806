"""The batches of a training, for each of several processes.

Everything random is drawn from a seed, the epoch and the image, never from the state of a random generator that other
images left behind. So a run that is resumed at step k sees the images that it would have seen, and several processes
together see what one would.
"""

# Shapes: B images of one part of a step, N images in all, V views of an image, C channels, H height, W width.

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tokenlens.images.decoding import UnreadableImageError
from tokenlens.images.files import printable_name
from tokenlens.training.objectives.base import TrainingBatch, Views
from tokenlens.training.seeds import preserve_random_state, seed_on_cpu

SampleKey = tuple[int, int, int]
"""Epoch, index of the image, position in the step's whole batch."""


class BatchOrder(Sampler[list[SampleKey]]):
    """The samples that a process sees, one list for each part of a step.

    Each epoch is a permutation of all images that depends on (seed, epoch) alone. Epochs follow each other without a
    gap: a batch may begin in one and end in the next, and no image is left out. Positions within a part are mirrored
    as described in ``TrainingBatch``.

    Args:
        n: number of images.
        batch_size: images of one step, over all processes and parts.
        rank: number of this process, below ``world_size``.
        world_size: number of processes.
        accumulate: number of parts in which a process goes through its share of a step.
        seed: seed of the recipe.
        start_step: the first step. The lists equal those of a run from step 0 from there on.
        steps: number of steps of the whole training.

    Raises:
        ValueError: if the batch does not divide into parts of even size, or a number is out of range.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        seed: int = 0,
        start_step: int = 0,
        *,
        steps: int,
    ) -> None:
        if min(n, batch_size, accumulate) < 1 or not 0 <= rank < world_size or not 0 <= start_step <= steps:
            raise ValueError(
                "expected n, batch_size and accumulate of at least 1, 0 ≤ rank < world_size, 0 ≤ start_step ≤ steps; "
                f"got n={n}, batch_size={batch_size}, accumulate={accumulate}, rank={rank}, world_size={world_size}, "
                f"start_step={start_step}, steps={steps}"
            )
        parts = world_size * accumulate
        if parts > 1 and batch_size % (2 * parts):
            below = batch_size // (2 * parts) * 2 * parts
            near = f"{below} or {below + 2 * parts}" if below else f"{2 * parts}"
            raise ValueError(
                f"batch_size={batch_size} does not divide among {world_size} processes with {accumulate} parts each: "
                f"expected a multiple of {2 * parts}, e.g. {near}"
            )
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.start_step, self.steps = start_step, steps

    def __len__(self) -> int:
        return (self.steps - self.start_step) * self.accumulate

    def positions(self, part: int) -> np.ndarray:
        """Return the positions (B,) of one part of a step; position i and position B − 1 − i of it are mirror images.

        Two positions are mirror images if they add up to batch_size − 1.
        """
        parts = self.world_size * self.accumulate
        if parts == 1:
            return np.arange(self.batch_size)
        half = self.batch_size // (2 * parts)
        first = np.arange(half) + half * (part * self.world_size + self.rank)
        return np.concatenate([first, self.batch_size - 1 - first[::-1]])

    def permutation(self, epoch: int) -> np.ndarray:
        """Return the order (N,) of the images in an epoch."""
        # RandomState: NumPy promises the same numbers in every version, which it does not for Generator.
        return np.random.RandomState([self.seed % 2**32, self.seed // 2**32 % 2**32, epoch]).permutation(self.n)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        orders: dict[int, np.ndarray] = {}
        for step in range(self.start_step, self.steps):
            start = step * self.batch_size
            epochs = range(start // self.n, (start + self.batch_size - 1) // self.n + 1)
            orders = {epoch: orders[epoch] if epoch in orders else self.permutation(epoch) for epoch in epochs}
            for part in range(self.accumulate):
                positions = self.positions(part).tolist()
                keys = [(*divmod(start + position, self.n), position) for position in positions]
                yield [(epoch, int(orders[epoch][nth]), position) for epoch, nth, position in keys]


class TrainingImages(Protocol):
    """Images to train on, e.g. those that ``tokenlens.images.labelled.classes.open_labelled`` opens."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class numbers (N,), or None for images without classes."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the images."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """Return an image as RGB; UnreadableImageError if it cannot be read."""


@dataclass(frozen=True)
class Sample:
    """The views of one image.

    Args:
        views: V tensors (C, H, W).
        label: class number, −1 without labels.
        index: number of the image; not the requested one if that could not be read.
        position: position in the step's whole batch.
        skipped: ``{"name", "reason"}`` of each image that could not be read: the requested one and those after it.
    """

    views: list[Tensor]
    label: int
    index: int
    position: int
    skipped: list[dict[str, str]]


@dataclass(frozen=True)
class NothingReadable:
    """Stand-in for a sample when no image at all can be read; an error would arrive with a worker's traceback."""

    reason: str


class TrainingSamples(Dataset[Sample | NothingReadable]):
    """The views of images, drawn from (seed, epoch, index) alone.

    An image that cannot be read is replaced by the next readable one, with the draws of the requested one.
    """

    def __init__(self, images: TrainingImages, views: Views, seed: int) -> None:
        self.images, self.views, self.seed = images, views, seed
        self._nothing: NothingReadable | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> Sample | NothingReadable:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[Sample | NothingReadable]:
        """Return a list of samples, as a DataLoader requests it.

        Random states are restored once per list: NumPy takes 0.1 ms for it, a third of the time of an image.
        """
        with preserve_random_state(devices=False):
            return [self._sample(*key) for key in keys]

    def _sample(self, epoch: int, requested: int, position: int) -> Sample | NothingReadable:
        if self._nothing is not None:  # all images were tried once already
            return self._nothing
        skipped: list[dict[str, str]] = []
        for offset in range(len(self.images)):
            index = (requested + offset) % len(self.images)
            try:
                image = self.images.read(index)
            except UnreadableImageError as error:
                skipped.append({"name": printable_name(self.images.names[index]), "reason": str(error)})
                continue
            seed_on_cpu(self.seed, epoch, requested)
            label = -1 if self.images.labels is None else int(self.images.labels[index])
            return Sample(self.views(image), label, index, position, skipped)
        first = "; ".join(f"{item['name']}: {item['reason']}" for item in skipped[:3])
        self._nothing = NothingReadable(f"none of the {len(skipped)} training images is readable ({first})")
        return self._nothing


Batches = Iterator[tuple[TrainingBatch, list[dict[str, str]]]]
"""Batches, each with ``{"name", "reason"}`` of the images that could not be read for it."""


def training_batches(
    images: TrainingImages,
    views: Views,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    accumulate: int = 1,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    workers: int = 0,
) -> Batches:
    """Yield one process's batches from ``start_step`` to ``steps``, ``accumulate`` of them for each step.

    The global random states are left unchanged.

    Args:
        images: see ``TrainingImages``.
        views: the augmentation of one image; must be picklable where workers are not forked.
        batch_size, steps, seed, accumulate, rank, world_size, start_step: see ``BatchOrder``.
        workers: number of additional processes that read and augment images. The batches do not depend on it.

    Yields:
        A batch, and ``{"name", "reason"}`` of each image that could not be read and was replaced by the next one. An
        unreadable image is listed each time it comes up.

    Raises:
        ValueError: as ``BatchOrder`` does, at once; during iteration, if no image at all can be read.
    """
    order = BatchOrder(len(images), batch_size, rank, world_size, accumulate, seed, start_step, steps=steps)
    # One pass over the loader is the whole training, so its workers are started once. The loader draws their seed from
    # the global random state unless it is given a generator.
    loader: DataLoader[Sample | NothingReadable] = DataLoader(
        TrainingSamples(images, views, seed),
        batch_sampler=order,
        collate_fn=partial(collate, size=batch_size),
        num_workers=workers,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),
    )
    return raise_errors(loader)


def sample_batches(
    images: TrainingImages, views: Views, seed: int, count: int, batch_size: int = 32
) -> Iterator[TrainingBatch]:
    """Yield batches of at most ``count`` training images, spread evenly over all of them.

    Raises:
        ValueError: during iteration, if no image at all can be read.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)).tolist()
    samples = TrainingSamples(images, views, seed)
    for first in range(0, len(chosen), batch_size):
        keys = [(0, index, position) for position, index in enumerate(chosen[first : first + batch_size])]
        for batch, _ in raise_errors([collate(samples.__getitems__(keys), size=len(keys))]):
            yield batch


def collate(
    samples: Sequence[Sample | NothingReadable], size: int
) -> tuple[TrainingBatch, list[dict[str, str]]] | NothingReadable:
    """Return the batch of some samples, and the images that could not be read for it."""
    ready: list[Sample] = []
    for sample in samples:
        if isinstance(sample, NothingReadable):
            return sample
        ready.append(sample)
    views = [torch.stack(list(view)) for view in zip(*(sample.views for sample in ready), strict=True)]
    labels = torch.tensor([sample.label for sample in ready])
    batch = TrainingBatch(
        views=views,
        labels=None if bool((labels < 0).any()) else labels,
        indices=torch.tensor([sample.index for sample in ready]),
        positions=torch.tensor([sample.position for sample in ready]),
        size=size,
    )
    return batch, [item for sample in ready for item in sample.skipped]


def raise_errors(loader: Iterable[Any]) -> Batches:
    """Yield what a loader collates; ValueError if no image at all can be read."""
    collated: tuple[TrainingBatch, list[dict[str, str]]] | NothingReadable
    for collated in loader:
        if isinstance(collated, NothingReadable):
            raise ValueError(collated.reason)
        yield collated


def _ignore_interrupts(worker: int) -> None:
    """Ignore Ctrl-C, which reaches all processes of a terminal; workers end once the checkpoint is written."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
