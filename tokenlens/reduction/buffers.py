"""Where hooks put what outlives them: laid out before the forward pass, one tensor for each kind of thing."""

# Shapes: N cells of one field, C images there is room for, B images of a forward pass.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Field = tuple[str, tuple[int, ...]]
"""The name of what is kept, and its shape without cells and images."""


class Places:
    """The places of all cells for some images, known from a first forward pass.

    On the CPU, small tensors that stay behind among the model's large temporary ones break up the memory that these
    would otherwise use again and again: each block then writes to memory that is in no cache. On ViT-S that made GELU
    alone four times slower, more than all sums together cost. So the places are made beforehand, and what the hooks
    compute is written into them; as one tensor for a field, which the metrics then read as it is.

    The first pass, with few images, only shows what is needed; after ``lay_out`` every pass must show the same.
    """

    def __init__(self) -> None:
        self._order: list[tuple[Field, int, Tensor]] = []
        self._fields: dict[Field, Tensor] = {}
        self._capacity = 0
        self._views: dict[tuple[int, int], list[tuple[Field, int, Tensor]]] = {}
        self._now: list[tuple[Field, int, Tensor]] = []
        self._next = 0
        self._count = 0

    @property
    def capacity(self) -> int:
        """Images there is room for; 0 before ``lay_out``."""
        return self._capacity

    @property
    def known(self) -> bool:
        """Whether a first pass has shown what is needed."""
        return bool(self._order)

    def lay_out(self, images: int) -> None:
        """Make the places for ``images`` images, for what the first pass has shown."""
        self._capacity = images
        self._views.clear()
        sizes: dict[Field, list[Tensor]] = {}
        for field, _, example in self._order:
            sizes.setdefault(field, []).append(example)
        self._fields = {
            field: examples[0].new_empty((len(examples), images, *field[1])) for field, examples in sizes.items()
        }
        self._order = [(field, row, example.new_empty(0)) for field, row, example in self._order]

    def start(self, first: int, images: int) -> None:
        """Get ready for a forward pass of ``images`` images, the first of which is the ``first`` of those kept."""
        self._next, self._count = 0, images
        if not self._capacity:
            self._order.clear()
            return
        assert first + images <= self._capacity
        if (first, images) not in self._views:
            self._views[first, images] = [
                (field, row, self._fields[field][row, first : first + images]) for field, row, _ in self._order
            ]
        self._now = self._views[first, images]

    def place(self, name: str, tail: tuple[int, ...], like: Tensor) -> tuple[int, Tensor]:
        """The row of the next cell of a field, and its place (B, *tail) for an operation's ``out``.

        ``like`` is what the sums are taken of, (B, …).

        Raises:
            ValueError: if this forward pass shows other things than the first one, or a site another number of images
                or another precision than the rest.
        """
        if len(like) != self._count:
            raise ValueError(
                f"a site shows {len(like)} images in a forward pass of {self._count}; every site must show each once"
            )
        if not self._capacity:
            row = sum(field == (name, tail) for field, _, _ in self._order)
            place = like.new_empty((self._count, *tail))
            self._order.append(((name, tail), row, place))
            return row, place
        if self._next < len(self._now):
            field, row, place = self._now[self._next]
            if field[0] == name and field[1] == tail:
                if place.dtype != like.dtype:
                    raise ValueError(
                        f"one site computes in {like.dtype}, another in {place.dtype}; the model must compute in one "
                        "precision, or under autocast (amp)"
                    )
                self._next += 1
                return row, place
        raise ValueError(
            f"this forward pass shows {name} of shape {tail} where the first one did not; the model must do the same "
            "in every pass"
        )

    def end(self) -> None:
        """After the first pass: put what it left behind together, as if it had been laid out.

        Later ones have filled every place, or numbers of an earlier pass would be read again.
        """
        if self._capacity:
            assert self._next == len(self._now), "this forward pass shows less than the first one"
        else:
            parts: dict[Field, list[Tensor]] = {}
            for field, _, place in self._order:
                parts.setdefault(field, []).append(place)
            self._fields = {field: torch.stack(places) for field, places in parts.items()}

    def of(self, name: str, tail: tuple[int, ...]) -> Tensor:
        """All cells of a field, (N, C, *tail)."""
        return self._fields[name, tail]


def rows_of(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of the first axis: a view where they are evenly spaced, as sites of blocks are, else a copy."""
    if len(rows) == 1:
        return x[rows[0] : rows[0] + 1]
    step = rows[1] - rows[0]
    if step > 0 and list(rows) == list(range(rows[0], rows[0] + step * len(rows), step)):
        return x[rows[0] : rows[-1] + 1 : step]
    return x[list(rows)]


def keep_freed_memory() -> None:
    """Let glibc's malloc keep up to 62 MB of freed memory instead of giving it back at once.

    By default it gives back what is free at the end of the heap when that exceeds twice the largest block that was ever
    freed, so a forward pass gives back and fetches again the same memory many times, more often the more is allocated
    beside it: on ViT-S 70,000 page faults a pass, a tenth of its time. One block of just under 32 MiB, which is
    never written to, raises that limit to the largest that malloc sets by itself. A plain forward pass gains, too.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")
