"""Preallocated buffers for what outlives a forward pass: one tensor per field, shared by all blocks and sites."""

# Shapes: N slots of one field, C images of capacity, B images of one forward pass.

from __future__ import annotations

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
    """Buffers for a number of images, with the slots that a first forward pass asked for.

    The first pass, usually of one image, records which slots are needed and in which order. After ``allocate``, every
    pass must ask for the same ones.

    Buffers are allocated before a pass because small tensors that outlive it would otherwise fragment the heap between
    the model's large temporaries, and each block would write to memory that is in no cache: on the CPU, GELU alone then
    takes four times as long in a ViT-S, which is more than all reductions together.
    """

    def __init__(self) -> None:
        self.capacity = 0
        """Number of images the buffers hold; 0 before ``allocate``."""
        self._order: list[tuple[Slot, Tensor]] = []
        self._buffers: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._views: dict[tuple[int, int], list[tuple[Slot, Tensor]]] = {}
        self._current: list[tuple[Slot, Tensor]] = []
        self._next = 0
        self._images = 0

    @property
    def has_shapes(self) -> bool:
        """Whether a first pass has shown which slots are needed."""
        return bool(self._order)

    def allocate(self, images: int) -> None:
        """Allocate the slots of the first pass for ``images`` images."""
        self.capacity = images
        self._views.clear()
        examples: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}
        for slot, example in self._order:
            examples.setdefault((slot.name, slot.tail), []).append(example)
        self._buffers = {
            (name, tail): same[0].new_empty((len(same), images, *tail)) for (name, tail), same in examples.items()
        }
        self._order = [(slot, example.new_empty(0)) for slot, example in self._order]

    def start(self, first: int, images: int) -> None:
        """Prepare for a forward pass of ``images`` images, stored from index ``first`` on."""
        self._next, self._images = 0, images
        if not self.capacity:
            self._order.clear()
            return
        assert first + images <= self.capacity
        if (first, images) not in self._views:
            self._views[first, images] = [
                (slot, self._buffers[slot.name, slot.tail][slot.row, first : first + images]) for slot, _ in self._order
            ]
        self._current = self._views[first, images]

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
        if not self.capacity:
            row = sum((slot.name, slot.tail) == (name, tail) for slot, _ in self._order)
            self._order.append((Slot(name, tail, row), like.new_empty((self._images, *tail), dtype=dtype)))
            return self._order[-1]
        if self._next < len(self._current):
            slot, memory = self._current[self._next]
            if slot.name == name and slot.tail == tail:
                if memory.dtype != dtype:
                    raise ValueError(
                        f"one site computes in {dtype}, another in {memory.dtype}; run the whole model in one "
                        "precision, or under autocast (amp)"
                    )
                self._next += 1
                return slot, memory
        raise ValueError(
            f"this forward pass has {name} of shape {tail} where the first one had not; the model must do the same in "
            "every pass"
        )

    def end(self) -> None:
        """Finish a forward pass; results of a first pass become readable as if they had been allocated beforehand."""
        if self.capacity:
            # Otherwise numbers of an earlier pass would be read again.
            assert self._next == len(self._current), "this forward pass has fewer slots than the first one"
        else:
            parts: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}
            for slot, memory in self._order:
                parts.setdefault((slot.name, slot.tail), []).append(memory)
            self._buffers = {field: torch.stack(memories) for field, memories in parts.items()}

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
