"""Data that the page carries inside itself: saved as CSV or shown as a table, without any request."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from dataclasses import dataclass
from typing import Any

import pandas as pd

DIGITS = 6
"""Significant digits of the numbers in the page; the files of the run folder have all of them."""

LONG = 20_000
"""From so many rows on (one for each channel of each norm), ``LONG_DIGITS`` digits have to do, or the page grows by
megabytes: 250,000 rows are 0.7 MB with three digits."""

LONG_DIGITS = 3


@dataclass(frozen=True)
class Download:
    """A table inside the page.

    Attributes:
        name: its id in the page.
        file: the name of the file that a click saves.
        rows: how many there are.
        columns: their names.
        digits: significant digits of its numbers.
        packed: ``rows`` and the columns as JSON, deflated, in base64. A column whose cells are all the same is one
            cell. Column by column instead of row by row, because that makes a third of the size.
    """

    name: str
    file: str
    rows: int
    columns: tuple[str, ...]
    digits: int
    packed: str


def download(frame: pd.DataFrame, name: str, of: str) -> Download:
    """Pack a frame for the page.

    Args:
        frame: any table; its index is left out.
        name: what it is; unique in the page.
        of: whose numbers these are; together with ``name`` the file's name.
    """
    digits = DIGITS if len(frame) <= LONG else LONG_DIGITS
    columns = {str(column): _packed(frame[column], digits) for column in frame.columns}
    contents = {"rows": len(frame), "columns": columns}
    text = json.dumps(contents, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = base64.b64encode(zlib.compress(text.encode("utf-8", "backslashreplace"), 9)).decode()
    return Download(f"data-{name}", f"{plain_name(of)}-{name}.csv", len(frame), tuple(columns), digits, packed)


def plain_name(text: str) -> str:
    """Any text as a part of a file name: letters, digits and ``_ . + -`` only, at most 80 of them."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_.-")[:80] or "tokenlens"


def _packed(column: pd.Series, digits: int) -> Any:
    cells = [_cell(value, digits) for value in column]
    return cells[0] if cells and all(type(cell) is type(cells[0]) and cell == cells[0] for cell in cells) else cells


def _cell(value: Any, digits: int) -> str | int | float | bool | None:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return None
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, float):
        return value if isinstance(value, bool | int) else str(value)
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value.is_integer() and abs(value) < 1e9:
        return int(value)
    return float(f"{value:.{digits}g}")
