"""Read each distinct image of a source once, and check what the model is given."""

# Shapes: B images of a batch, H height, W width.

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import distributed

from tokenlens.images.batches import iterate_batches
from tokenlens.images.preprocessing import DARK, Batch
from tokenlens.images.sources import ImageSource
from tokenlens.storage.wording import counted

LARGEST = 10.0
"""The largest magnitude of a normalized value that is not remarked on; with timm's constants it stays below 3."""


class ImageWarning(UserWarning):
    """A remark on the images that a reader of the numbers must know."""


def iterate_distinct(
    source: ImageSource, batch_size: int, workers: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Iterate as ``iterate_batches`` does, but over one of each set of images that the model cannot tell apart.

    Images whose preprocessed pixels are equal to the bit (by SHA-256) are copies: the first one is kept, the others are
    listed in ``source.copies`` and never reach the model. Resized or re-encoded versions of an image are not copies.
    Afterwards ``source.remarks`` says how many copies there were, how many images are nearly black, and which range the
    values have if it is not plausible for normalized images.

    With several processes, all of them must iterate, in one ``torch.distributed`` group: after each batch they exchange
    the hashes, so that the same images are kept as by one process.

    Raises:
        ValueError: as ``iterate_batches``.
    """
    source.copies.clear()
    seen = _SeenImages()
    batches = iterate_batches(source, batch_size, workers=workers, rank=rank, world_size=world_size)
    while True:
        batch = next(batches, None)
        facts = _exchange(None if batch is None else _BatchFacts.of(batch), world_size)
        if not any(facts):
            break
        kept = seen.add([each for each in facts if each is not None])
        if batch is not None and (chosen := [i for i, index in enumerate(batch.indices) if index in kept]):
            yield batch if len(chosen) == len(batch.indices) else _select(batch, chosen)
    source.copies[:] = seen.copies
    source.remarks[:] = seen.remarks()


@dataclass(frozen=True)
class _BatchFacts:
    """The facts about one batch that all processes need."""

    indices: list[int]
    names: list[str]
    pixel_hashes: list[str]
    dark: list[bool]
    low: float
    high: float

    @classmethod
    def of(cls, batch: Batch) -> _BatchFacts:
        low, high = (float(value) for value in torch.aminmax(batch.images))
        return cls(batch.indices, batch.names, batch.pixel_hashes, batch.dark, low, high)


@dataclass
class _SeenImages:
    """The images seen so far, by all processes."""

    first: dict[str, str] = field(default_factory=dict)
    copies: list[dict[str, str]] = field(default_factory=list)
    dark: list[str] = field(default_factory=list)
    low: float = math.inf
    high: float = -math.inf

    def add(self, facts: Sequence[_BatchFacts]) -> set[int]:
        """Add one batch of each process, and return the indices of the images that no earlier one equals."""
        kept = set()
        for batch in sorted(facts, key=lambda each: each.indices):
            self.low, self.high = min(self.low, batch.low), max(self.high, batch.high)
            for index, name, digest, dark in zip(
                batch.indices, batch.names, batch.pixel_hashes, batch.dark, strict=True
            ):
                if digest in self.first:
                    self.copies.append({"name": name, "copy_of": self.first[digest]})
                    continue
                self.first[digest] = name
                kept.add(index)
                self.dark += [name] * dark
        return kept

    def remarks(self) -> list[str]:
        """Return what a reader of the numbers must know, as sentences."""
        remarks = []
        if self.copies:
            first, many = self.copies[0], len(self.copies) > 1
            remarks.append(
                f"{counted(len(self.copies), 'image')} {'are copies' if many else 'is a copy'} of others (the same "
                f"pixels after preprocessing), e.g. {first['name']} of {first['copy_of']}. One of each is analyzed and "
                f"counted: {counted(len(self.first), 'distinct image')}."
            )
        if self.dark:
            remarks.append(
                f"{counted(len(self.dark), 'image')} {'are' if len(self.dark) > 1 else 'is'} nearly black (no value "
                f"above {DARK} of 255), e.g. {self.dark[0]}. Data of 12 bits in a 16-bit file look like this; scale "
                "such files to the full 16 bits."
            )
        if self.low == self.high:
            remarks.append(f"All values of all images are equal ({self.low:g}): there is nothing to see in them.")
        if max(-self.low, self.high) > LARGEST:
            remarks.append(
                f"The images have values from {self.low:g} to {self.high:g}, but normalized images lie within about "
                "±3. Apply the model's transform (LoadedModel.transform()), or divide by 255 and normalize."
            )
        return remarks


def _exchange(facts: _BatchFacts | None, world_size: int) -> list[_BatchFacts | None]:
    if world_size == 1:
        return [facts]
    received: list[Any] = [None] * world_size
    distributed.all_gather_object(received, facts)
    return received


def _select(batch: Batch, chosen: list[int]) -> Batch:
    lists = ("indices", "names", "hashes", "pixel_hashes", "dark")
    return replace(
        batch, images=batch.images[chosen], **{name: [getattr(batch, name)[i] for i in chosen] for name in lists}
    )
