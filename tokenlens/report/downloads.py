"""Tables embedded in the page, which can be saved as CSV or shown without a network request."""

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
"""Significant digits of numbers in the page; the run folder has all digits."""

LONG = 20_000
"""Tables with more rows (one per channel of each norm) have only ``LONG_DIGITS`` digits, to keep the page small:
250,000 rows take 0.7 MB with three digits."""

LONG_DIGITS = 3


@dataclass(frozen=True)
class Download:
    """A table embedded in the page.

    Attributes:
        name: the id in the page.
        file: the file name under which it is saved.
        rows: number of rows.
        columns: names of the columns.
        digits: significant digits of its numbers.
        packed: ``rows`` and the columns as deflated JSON in base64. Storing columns instead of rows takes a third of
            the space. A column with a single value is stored as that value.
    """

    name: str
    file: str
    rows: int
    columns: tuple[str, ...]
    digits: int
    packed: str


def download(frame: pd.DataFrame, name: str, title: str) -> Download:
    """Pack a frame, without its index, for the page; its file name consists of the page's title and its ``name``."""
    digits = DIGITS if len(frame) <= LONG else LONG_DIGITS
    columns = {str(column): _packed(frame[column], digits) for column in frame.columns}
    contents = {"rows": len(frame), "columns": columns}
    file = f"{plain_name(title)}-{name}.csv"
    return Download(f"data-{name}", file, len(frame), tuple(columns), digits, pack(contents))


def pack(values: Any) -> str:
    """Return JSON as deflated base64, which the page's script unpacks."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8", "backslashreplace"), 9)).decode()


def plain_name(text: str) -> str:
    """Convert text to a part of a file name: at most 80 letters, digits and ``_ . + -``."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_.-")[:80] or "tokenlens"


def _packed(column: pd.Series, digits: int) -> Any:
    values = [_plain(value, digits) for value in column]
    same = values and all(type(value) is type(values[0]) and value == values[0] for value in values)
    return values[0] if same else values


def _plain(value: Any, digits: int) -> str | int | float | bool | None:
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
