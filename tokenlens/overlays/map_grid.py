"""Maps of one photograph in rows and columns, with the numbers that a figure needs."""

# Shapes: N maps, h, w the patch grid; H, W pixels.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class MapGrid:
    """Maps over the patches of one photograph, row by row, on one scale.

    Args:
        image: name of the image.
        model: full name of the model.
        photograph: RGB in [0, 1], (H, W, 3).
        maps: values (N, h, w), or colours (N, h, w, 4), RGB in [0, 1] and opacity.
        titles: title of each map.
        columns: number of maps side by side.
        rows: name of each row; empty if the rows only continue each other.
        quantity: what the values are, as the label of the colour bar; empty for colours.
        signed: whether values are drawn on a scale around 0.
        captions: text under each map; empty for none.
        outlined: patches to outline, (N, h, w); None for none.
        covered: height and width in pixels that the patches cover; None for all of the photograph.
        note: sentence for the header.
    """

    image: str
    model: str
    photograph: NDArray[Any]
    maps: NDArray[Any]
    titles: tuple[str, ...]
    columns: int
    rows: tuple[str, ...] = ()
    quantity: str = ""
    signed: bool = False
    captions: tuple[str, ...] = ()
    outlined: NDArray[np.bool_] | None = None
    covered: tuple[float, float] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name, texts in (("titles", self.titles), ("captions", self.captions or self.titles)):
            if len(texts) != len(self.maps):
                raise ValueError(f"expected {len(self.maps)} {name}, one per map, got {len(texts)}")

    @property
    def colours(self) -> bool:
        """Whether the maps are colours rather than values."""
        return self.maps.ndim == 4

    def frame(self) -> pd.DataFrame:
        """Return a row per map: image, row, title, mean, minimum and maximum over patches (NaN for colours)."""
        names = [self.rows[index // self.columns] if self.rows else "" for index in range(len(self.maps))]
        values_NP = np.full((len(self.maps), 1), np.nan) if self.colours else self.maps.reshape(len(self.maps), -1)
        return pd.DataFrame(
            {
                "image": self.image,
                "row": names,
                "title": self.titles,
                "mean": values_NP.mean(1),
                "min": values_NP.min(1),
                "max": values_NP.max(1),
                "caption": self.captions or "",
            }
        )


def shared_limits(grids: Sequence[MapGrid]) -> tuple[float, float]:
    """Return the lowest and highest value of a colour scale that all maps share, rounded outwards to two digits.

    Signed values get a scale around 0. Others reach from their 0.5 % to their 99.5 % quantile, or from 0 if that is
    near, because single outliers would hide the rest; the colour bar marks what is beyond.
    """
    values = np.concatenate([grid.maps.ravel() for grid in grids])
    if any(grid.signed for grid in grids):
        high = round_up(float(np.abs(values).max()))
        return -high, high
    low, high = (float(np.quantile(values, share)) for share in (0.005, 0.995))
    high = round_up(high)
    step = 10.0 ** (np.floor(np.log10(high)) - 1)
    return (0.0 if low < 0.3 * high else float(round(np.floor(low / step) * step, 6))), high


def round_up(value: float) -> float:
    """Round a positive number up to two digits, so that its label is what it is.

    >>> round_up(0.3741), round_up(0.996), round_up(1.0), round_up(12.01), round_up(0.0)
    (0.38, 1.0, 1.0, 13.0, 0.01)
    """
    if value < 0.01:
        return 0.01
    unit = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(round(np.ceil(value / unit - 1e-3) * unit, 6))
