"""What a training step is given: which images, in which order, seen how, for each of several processes.

Everything that is drawn comes from a seed and a place (epoch, image), never from the state of a random generator that
other images left behind. So a run that goes on at step k sees what it would have seen, and several processes together
see what one would.
"""

# Shapes: B images of a process's part of a batch, V views of an image, C channels, H height, W width, N images in all.

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tokenlens.images.decoding import UnreadableImageError
from tokenlens.images.items import printable
from tokenlens.training.objectives.base import TrainingBatch, Views

Place = tuple[int, int, int]
"""Epoch, index of the image, position in the step's whole batch."""


class TrainingImages(Protocol):
    """What is trained on; ``tokenlens.images.labelled.classes.open_labelled`` opens some."""

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) numbers of classes, if the images have some."""

    @property
    def names(self) -> Sequence[str]:
        """Of the images."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """An image as RGB; UnreadableImageError if it cannot be read."""


@dataclass(frozen=True)
class Sample:
    """The views of one image, V tensors (C, H, W).

    Args:
        views: see ``tokenlens.training.objectives.Views``.
        label: number of the class, −1 without labels.
        index: which image it is; not the one asked for if that could not be read.
        position: in the step's whole batch.
        skipped: ``{"name", "reason"}`` of each image that could not be read: the one asked for and those after it.
    """

    views: list[Tensor]
    label: int
    index: int
    position: int
    skipped: list[dict[str, str]]


@dataclass(frozen=True)
class NothingReadable:
    """In place of a sample when no image at all can be read; an error would arrive with a worker's traceback."""

    reason: str


class TrainingSamples(Dataset[Sample | NothingReadable]):
    """The views of images, drawn by (seed, epoch, index) and by nothing else.

    An image that cannot be read is replaced by the next one that can be, with the draws of the one asked for.

    Args:
        images: see ``TrainingImages``.
        views: the augmentation.
        seed: of the recipe.
    """

    def __init__(self, images: TrainingImages, views: Views, seed: int) -> None:
        self.images, self.views, self.seed = images, views, seed
        self._nothing: NothingReadable | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: Place) -> Sample | NothingReadable:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[Sample | NothingReadable]:
        """A list of samples, what a DataLoader asks for.

        The random states are put back once for all: NumPy takes 0.1 ms for it, a third of what an image takes.
        """
        with random_states_kept():
            return [self._sample(*place) for place in places]

    def _sample(self, epoch: int, asked: int, position: int) -> Sample | NothingReadable:
        if self._nothing is not None:  # all images are tried once, not once for each of a batch
            return self._nothing
        skipped: list[dict[str, str]] = []
        for further in range(len(self.images)):
            index = (asked + further) % len(self.images)
            try:
                image = self.images.read(index)
            except UnreadableImageError as error:
                skipped.append({"name": printable(self.images.names[index]), "reason": str(error)})
                continue
            seed_random_states(self.seed, epoch, asked)
            label = -1 if self.images.labels is None else int(self.images.labels[index])
            return Sample(self.views(image), label, index, position, skipped)
        first = "; ".join(f"{item['name']}: {item['reason']}" for item in skipped[:3])
        self._nothing = NothingReadable(f"none of the {len(skipped)} training images is readable ({first})")
        return self._nothing


@contextmanager
def random_states_kept() -> Iterator[None]:
    """random, numpy.random and torch's default generator go on after this as if it had not been.

    Unlike ``tokenlens.training.seeds`` it leaves CUDA alone, which a forked worker must not touch.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def seed_random_states(*numbers: int) -> None:
    """Let random, numpy.random and torch's default generator start from these numbers.

    Of torch only the generator of the CPU, where the views are made: ``torch.manual_seed`` would seed every device.
    """
    drawn = np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(3, np.uint64)
    random.seed(int(drawn[0]))
    np.random.seed(int(drawn[1]) % 2**32)
    torch.default_generator.manual_seed(int(drawn[2]) % 2**63)


class BatchOrder(Sampler[list[Place]]):
    """Which images a process sees in which step: one list of places for each part of a step that it goes through.

    Each epoch goes through a permutation of all images that comes from (seed, epoch). Epochs follow each other without
    a gap: a batch may begin in one and end in the next, and no image is ever left out. The positions of a part are as
    ``TrainingBatch`` says: with each place its mirror image.

    Args:
        n: images.
        batch_size: images of one step, over all processes and parts.
        rank: this process's number among ``world_size``.
        world_size: processes.
        accumulate: parts of a process's share of a step.
        seed: of the recipe.
        start_step: the first step; the lists are those that a run from step 0 would have from there on.
        steps: where the training ends.

    Raises:
        ValueError: if the batch does not divide into parts of even size, or a number cannot be.
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
        """(B,) the positions of this process's part ``part`` of a step, in their order; position i of the part and
        position B − 1 − i add up to batch_size − 1."""
        parts = self.world_size * self.accumulate
        if parts == 1:
            return np.arange(self.batch_size)
        half = self.batch_size // (2 * parts)
        first = np.arange(half) + half * (part * self.world_size + self.rank)
        return np.concatenate([first, self.batch_size - 1 - first[::-1]])

    def permutation(self, epoch: int) -> np.ndarray:
        """(N,) the order of the images in an epoch."""
        # RandomState: NumPy promises the same numbers in every version, which it does not for Generator.
        return np.random.RandomState([self.seed % 2**32, self.seed // 2**32 % 2**32, epoch]).permutation(self.n)

    def __iter__(self) -> Iterator[list[Place]]:
        orders: dict[int, np.ndarray] = {}
        for step in range(self.start_step, self.steps):
            start = step * self.batch_size
            epochs = range(start // self.n, (start + self.batch_size - 1) // self.n + 1)
            orders = {epoch: orders[epoch] if epoch in orders else self.permutation(epoch) for epoch in epochs}
            for part in range(self.accumulate):
                positions = self.positions(part).tolist()
                places = [(*divmod(start + position, self.n), position) for position in positions]
                yield [(epoch, int(orders[epoch][nth]), position) for epoch, nth, position in places]


Collated = tuple[TrainingBatch, list[dict[str, str]]] | NothingReadable


def collate(samples: Sequence[Sample | NothingReadable], size: int) -> Collated:
    """Samples as a batch, and what was skipped for it; ``size`` is that of the step's whole batch."""
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
) -> Iterator[tuple[TrainingBatch, list[dict[str, str]]]]:
    """A process's parts of all steps from ``start_step`` to ``steps``, ``accumulate`` for each step.

    The global random states are left as they are.

    Args:
        images: see ``TrainingImages``.
        views: the augmentation of one image; must be picklable where workers are not forked.
        batch_size, steps, seed, accumulate, rank, world_size, start_step: see ``BatchOrder``.
        workers: processes that read and augment, beside this one; 0 for none. They change nothing but the time.

    Yields:
        A batch, and ``{"name", "reason"}`` of each image that could not be read and was replaced by the next one. An
        image that cannot be read is among them each time it is met.

    Raises:
        ValueError: as ``BatchOrder`` does, at once; while going through, if no image at all can be read.
    """
    order = BatchOrder(len(images), batch_size, rank, world_size, accumulate, seed, start_step, steps=steps)
    # One pass over the loader is the whole training, so its workers live as long as that and are never started again.
    # It draws its workers' seed from the global random state, unless it is given a generator.
    loader: DataLoader[Sample | NothingReadable] = DataLoader(
        TrainingSamples(images, views, seed),
        batch_sampler=order,
        collate_fn=partial(collate, size=batch_size),
        num_workers=workers,
        worker_init_fn=_leave_interrupts_to_the_parent,
        generator=torch.Generator(),
    )
    return _given(loader)


def _given(loader: DataLoader[Sample | NothingReadable]) -> Iterator[tuple[TrainingBatch, list[dict[str, str]]]]:
    collated: Collated
    for collated in loader:
        if isinstance(collated, NothingReadable):
            raise ValueError(collated.reason)
        yield collated


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the workers end when the training has written its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
