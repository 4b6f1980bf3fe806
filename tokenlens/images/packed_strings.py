"""A compact list of strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class PackedStrings(Sequence[str]):
    """A list of strings stored as one array of bytes.

    A million Python strings take 100 MB, and every forked worker soon has its own copy, because reading an object
    changes its reference count. The array takes 20 MB and stays shared.

    >>> names = PackedStrings(["cat/1.jpg", "dog/2.jpg"])
    >>> names[1], len(names), names == ["cat/1.jpg", "dog/2.jpg"]
    ('dog/2.jpg', 2, True)
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self.ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        self.text = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    @classmethod
    def from_arrays(cls, text: np.ndarray, ends: np.ndarray) -> PackedStrings:
        """Build a list from the attributes ``text`` and ``ends`` of another one."""
        strings = cls(())
        strings.text, strings.ends = text, ends
        return strings

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
            raise IndexError(f"index {index} is out of range for {len(self)} strings")
        index %= len(self)
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        text, start = self.text.tobytes(), 0
        for end in self.ends.tolist():
            yield text[start:end].decode("utf-8", "surrogateescape")
            start = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedStrings):
            return np.array_equal(self.ends, other.ends) and np.array_equal(self.text, other.text)
        return isinstance(other, list | tuple) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        first = ", ".join(map(repr, self[:3]))
        return f"PackedStrings([{first}{', …' if len(self) > 3 else ''}], length {len(self)})"

    def take(self, indices: Iterable[int]) -> PackedStrings:
        """Return the strings at ``indices``, in that order."""
        return PackedStrings(self[int(index)] for index in indices)
