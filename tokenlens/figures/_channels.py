"""Values per channel of the norms: their frames and heat maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tokenlens.analysis.analysis import Analysis

MOST_COLUMNS = 1024
"""Larger numbers of channels are drawn as means of neighbours, which keeps the files small."""


def channel_rows(analysis: Analysis, keys: dict[str, str], values: dict[str, NDArray[np.float64]]) -> pd.DataFrame:
    """Return one row per block and channel of a norm; the final norm is numbered after the last block.

    Args:
        analysis: the analysis that the values come from.
        keys: columns that are equal in all rows, among them ``norm``.
        values: columns with the values of a norm, as arrays (channels) or (blocks, channels).
    """
    arrays_LD = {name: np.atleast_2d(array) for name, array in values.items()}
    blocks, channels = next(iter(arrays_LD.values())).shape
    first = analysis.blocks if keys["norm"] == "final_norm" else 0
    columns: dict[str, Any] = {
        "block": np.repeat(np.arange(blocks), channels) + first,
        "channel": np.tile(np.arange(channels), blocks),
    }
    return pd.DataFrame({**keys, **columns, **{name: array_LD.ravel() for name, array_LD in arrays_LD.items()}})


def average_neighbours(values_LD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average neighbouring channels if there are more than ``MOST_COLUMNS``."""
    channels = values_LD.shape[1]
    bins = np.arange(0, channels, -(-channels // MOST_COLUMNS))
    means: NDArray[np.float64] = np.add.reduceat(values_LD, bins, axis=1) / np.diff(np.append(bins, channels))
    return means


def channels_text(channels: int, order: str = "") -> str:
    """Return the label of an axis of sorted channels."""
    width = -(-channels // MOST_COLUMNS)
    return f"{channels} channels, sorted{order}" + (f", means of {width} neighbours" if width > 1 else "")
