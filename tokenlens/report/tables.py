"""Tables that are written into a page row by row, with their numbers as a download."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from tokenlens.report.downloads import Download, download
from tokenlens.report.number_format import with_digits


class TableEntry(NamedTuple):
    """An entry of a table: its text, a small addition, and the value to sort by if that is not the text."""

    text: str
    small: str = ""
    sorts: float | str | None = None


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        name: the id in the page.
        columns: the headings.
        numeric: headings of the columns that hold numbers.
        rows: for each row an entry per column.
        data: the numbers as a download.
    """

    name: str
    columns: tuple[str, ...]
    numeric: frozenset[str]
    rows: list[list[TableEntry]]
    data: Download


Column = Callable[[Any], TableEntry]
"""A function that writes a column's entry for a row, which is a named tuple."""


def table_of(
    frame: pd.DataFrame, name: str, title: str, columns: Mapping[str, Column], numeric: Collection[str] = ()
) -> Table:
    """Return a table with some columns of a frame; its download has all of them.

    If the frame has several values in the column ``setting``, that is the first column of the table.
    """
    if "setting" in frame and frame["setting"].nunique() > 1:
        columns = {"setting": text_column("setting"), **columns}
    rows = [[entry(row) for entry in columns.values()] for row in frame.itertuples(index=False)]
    return Table(name, tuple(columns), frozenset(numeric), rows, download(frame, name, title))


def text_column(name: str) -> Column:
    """Return a column that shows text unchanged."""
    return lambda row: TableEntry(str(getattr(row, name)))


def number_column(name: str, digits: int = 4) -> Column:
    """Return a column that shows numbers to some significant digits; undefined ones are empty and sort last."""

    def entry(row: Any) -> TableEntry:
        value = getattr(row, name)
        if pd.isna(value):
            return TableEntry("", sorts="")
        return TableEntry(with_digits(float(value), digits), sorts=float(f"{value:.6g}"))

    return entry


def interval_column(low: str = "ci_low", high: str = "ci_high") -> Column:
    """Return a column that shows the two bounds of an interval."""

    def entry(row: Any) -> TableEntry:
        first, last = (number_column(name, 3)(row) for name in (low, high))
        return TableEntry(f"{first.text} to {last.text}" if first.text else "", sorts=first.sorts)

    return entry
