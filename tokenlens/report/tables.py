"""Tables that stand in a page row by row: numbers first, then how their cells are written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from tokenlens.report.downloads import Download, download
from tokenlens.report.numerals import significant


class Cell(NamedTuple):
    """A cell: its text, something small behind it, and what it sorts by where that is not its text."""

    text: str
    small: str = ""
    sorts: float | str | None = None


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        name: its id in the page.
        columns: the headings.
        numeric: those of them whose cells are numbers.
        rows: a cell for each column.
        data: the same numbers, to be downloaded.
    """

    name: str
    columns: tuple[str, ...]
    numeric: frozenset[str]
    rows: list[list[Cell]]
    data: Download


Written = Callable[[Any], Cell]


def table_of(
    frame: pd.DataFrame, name: str, of: str, columns: Mapping[str, Written], numeric: Collection[str] = ()
) -> Table:
    """A table of some columns of a frame; its download has all of them.

    Args:
        frame: the numbers.
        name: id in the page.
        of: whose numbers these are.
        columns: by heading, how the cell of a row (a named tuple of the frame) is written.
        numeric: headings of the columns that hold numbers.
    """
    rows = [[written(row) for written in columns.values()] for row in frame.itertuples(index=False)]
    return Table(name, tuple(columns), frozenset(numeric), rows, download(frame, name, of))


def text_of(column: str) -> Written:
    """A column of text as it stands."""
    return lambda row: Cell(str(getattr(row, column)))


def number_of(column: str, digits: int = 4) -> Written:
    """A column of numbers to so many digits; what is not defined stays empty and sorts last."""

    def written(row: Any) -> Cell:
        value = getattr(row, column)
        if pd.isna(value):
            return Cell("", sorts="")
        return Cell(significant(float(value), digits), sorts=float(f"{value:.6g}"))

    return written


SUMMARY = (
    "metric",
    "part",
    "site",
    "group",
    "mean",
    "lowest",
    "lowest_block",
    "lowest_head",
    "highest",
    "highest_block",
    "highest_head",
    "n",
    "unit",
)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each metric, part, site and group: its mean over blocks and heads, and where it is extreme.

    Args:
        table: an analysis' table.

    Returns:
        A frame with the columns of ``SUMMARY``; the places of extremes are empty where there is one cell only.
    """
    rows = []
    for keys, inside in table.groupby(["metric", "part", "site", "group"], sort=False):
        values = inside["value"].astype(float)
        row: dict[str, Any] = dict(zip(SUMMARY, keys, strict=False))
        row |= {"mean": values.mean(), "lowest": values.min(), "highest": values.max()}
        row |= {"n": int(inside["n"].max()), "unit": inside["unit"].iloc[0]}
        if values.notna().any() and len(inside) > 1:
            for extreme, place in (("lowest", values.idxmin()), ("highest", values.idxmax())):
                row |= {f"{extreme}_{kind}": inside.loc[place, kind] for kind in ("block", "head")}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=list(SUMMARY))
    return frame.astype({f"{which}_{kind}": "Int64" for which in ("lowest", "highest") for kind in ("block", "head")})


def summary_table(table: pd.DataFrame, of: str) -> Table:
    """The summary of an analysis' table, as it stands in its page."""

    def extreme(which: str) -> Written:
        def written(row: Any) -> Cell:
            place = [getattr(row, f"{which}_{kind}") for kind in ("block", "head")]
            at = " ".join(f"{kind}{n}" for kind, n in zip("bh", place, strict=True) if not pd.isna(n))
            return number_of(which)(row)._replace(small=at)

        return written

    columns: dict[str, Written] = {name: text_of(name) for name in ("metric", "part", "site", "group")}
    columns |= {"mean": number_of("mean"), "lowest": extreme("lowest"), "highest": extreme("highest")}
    columns |= {"n": number_of("n", 9), "unit": text_of("unit")}
    return table_of(summary(table), "summary", of, columns, ("mean", "lowest", "highest", "n"))
