"""Many names in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """A list of strings, kept as one block of bytes.

    A million Python strings are a million objects: 100 MB, of which every forked worker soon has a copy of its own,
    because looking at an object changes its reference count. The block (20 MB) stays shared.

    >>> names = Names(["cat/1.jpg", "dog/2.jpg"])
    >>> names[1], len(names), names == ["cat/1.jpg", "dog/2.jpg"]
    ('dog/2.jpg', 2, True)
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.text = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    @classmethod
    def of_arrays(cls, text: np.ndarray, ends: np.ndarray) -> Names:
        """From the bytes of all names and the place where each one ends, as ``text`` and ``ends`` of a Names."""
        names = cls(())
        names.text, names.ends = text, ends
        return names

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} names, got index {index}")
        index %= len(self)
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        text, start = self.text.tobytes(), 0
        for end in self.ends.tolist():
            yield text[start:end].decode("utf-8", "surrogateescape")
            start = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return np.array_equal(self.ends, other.ends) and np.array_equal(self.text, other.text)
        return isinstance(other, list | tuple) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Names([{shown}{', …' if len(self) > 3 else ''}], {len(self)} in all)"

    def take(self, indices: Iterable[int]) -> Names:
        """Some of them, in the order of ``indices``."""
        return Names(self[int(index)] for index in indices)
