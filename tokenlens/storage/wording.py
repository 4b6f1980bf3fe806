"""Words that go with numbers."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """Return a count and a noun, in the plural if necessary.

    >>> counted(1, "image"), counted(1734, "row")
    ('1 image', '1,734 rows')
    """
    return f"{count:,} {thing}" + ("" if count == 1 else "s")
