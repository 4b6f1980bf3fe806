"""Preallocated buffers for what outlives a forward pass: one tensor per field, shared by all blocks and sites."""

# Shapes: N slots of one field, C images of capacity, B images of one forward pass.

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Slot(NamedTuple):
    """A row of the buffer ``(N, C, *tail)`` of one field: the numbers of one site for all images."""

    name: str
    tail: tuple[int, ...]
    row: int


class Buffers:
    """Buffers for a number of images, with the slots that a first forward pass asks for.

    Every later pass must ask for the same ones, in the same order, and writes to memory that exists before it: small
    tensors that outlive a pass would otherwise fragment the heap between the model's large temporaries.
    """

    def __init__(self) -> None:
        self.capacity = 0
        """Number of images the buffers hold."""
        self._slots: list[tuple[Slot, Tensor]] = []
        self._buffers: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._rows: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._next = self._first = self._images = 0
        self._block, self._used = torch.empty(0), 0

    def start(self, first: int, images: int, capacity: int) -> None:
        """Prepare for a forward pass of ``images`` images, stored from index ``first`` on.

        Where they do not fit, the buffers are discarded, and this pass is the first one of new ones for ``capacity``.
        """
        self._next, self._first, self._images = 0, first, images
        if first + images > self.capacity:
            assert first + images <= capacity
            self.capacity, self._slots, self._buffers, self._rows = capacity, [], {}, Counter()

    def next_slot(self, name: str, tail: tuple[int, ...], like: Tensor) -> tuple[Slot, Tensor]:
        """Return the next slot of a field, and its memory ``(B, *tail)`` for this pass, to write to.

        Args:
            name: name of the field.
            tail: its shape for one image.
            like: the tensor that is reduced, (B, …); results are in its precision, or float32 for half precision.

        Raises:
            ValueError: if the number of images, the precision or the order of the slots is not that of the first pass.
        """
        if len(like) != self._images:
            raise ValueError(
                f"a site has {len(like)} images in a forward pass of {self._images}; every site must see each one once"
            )
        dtype = torch.promote_types(like.dtype, torch.float32)
        if self._slots and self._slots[0][1].dtype != dtype:
            raise ValueError(
                f"one site computes in {dtype}, another in {self._slots[0][1].dtype}; run the whole model in one "
                "precision, or under autocast (amp)"
            )
        if not self._buffers:
            self._rows[name, tail] += 1
            self._slots.append(
                (Slot(name, tail, self._rows[name, tail] - 1), self._take(like, (self._images, *tail), dtype))
            )
        slot, memory = self._slots[self._next] if self._next < len(self._slots) else (None, like)
        if slot is None or slot[:2] != (name, tail):
            raise ValueError(
                f"this forward pass has {name} of shape {tail} where the first one had not; the model must do the same "
                "in every pass"
            )
        self._next += 1
        first = self._first if self._buffers else 0
        return slot, memory[first : first + self._images]

    def _take(self, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory for a result of the first pass, from a block so large that malloc maps it outside the heap."""
        count = math.prod(shape)
        if self._used + count > self._block.numel():
            self._block, self._used = like.new_empty(max(count, 2**24), dtype=dtype), 0
        self._used += count
        return self._block[self._used - count : self._used].view(shape)

    def end(self) -> None:
        """Finish a forward pass; after the first one, the memory of each field becomes one tensor."""
        # Otherwise numbers of an earlier pass would be read again.
        assert self._next == len(self._slots), "this forward pass has fewer slots than the first one"
        if not self._buffers:
            for index, (slot, memory) in enumerate(self._slots):
                if slot[:2] not in self._buffers:
                    shape = (self._rows[slot[:2]], self.capacity, *slot.tail)
                    self._buffers[slot[:2]] = memory.new_empty(shape)
                row = self._buffers[slot[:2]][slot.row]
                row[: len(memory)] = memory
                self._slots[index] = (slot, row)
            self._block, self._used = torch.empty(0), 0

    def read(self, name: str, tail: tuple[int, ...]) -> Tensor:
        """Return all slots of a field, ``(N, C, *tail)``."""
        return self._buffers[name, tail]


def select_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Select rows of the first axis: a view where they are evenly spaced, as those of one site usually are."""
    if len(rows) == 1:
        return x[rows[0] : rows[0] + 1]
    step = rows[1] - rows[0]
    if step > 0 and list(rows) == list(range(rows[0], rows[0] + step * len(rows), step)):
        return x[rows[0] : rows[-1] + 1 : step]
    return x[list(rows)]


def keep_freed_memory() -> None:
    """Let glibc's malloc keep up to 62 MB of freed memory instead of returning it to the system.

    By default malloc returns free memory at the end of the heap once it exceeds twice the largest block ever freed, so
    a forward pass returns and fetches the same memory many times: on a ViT-S 70,000 page faults a pass, a tenth of its
    time. Freeing one block of just under 32 MiB, which is never written to, raises that limit to the largest that
    malloc sets by itself. Plain forward passes also become faster.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")
