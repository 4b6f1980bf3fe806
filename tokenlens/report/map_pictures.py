"""Pictures for a page: photographs, maps with one pixel per patch, and colour scales in CSS."""

# Shapes: h, w the patch grid.

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from tokenlens.figures.style import MARKED_PATCH

LEVELS = 61
"""Colours of a scale; odd, so that the middle one is the middle of its limits."""

THUMBNAIL = 80
"""Longer side of a thumbnail in pixels."""


class MapPicture(NamedTuple):
    """A map as a picture, the mean over its patches, and a description.

    The values of its ``rows`` × ``columns`` patches begin at row ``first`` of a table in the page.
    """

    picture: str
    mean: str
    title: str
    first: int
    columns: int
    rows: int


def map_picture(
    map_hw: NDArray[np.float32], limits: tuple[float, float], colours: str, marked_hw: NDArray[np.bool_] | None = None
) -> str:
    """Return a map as the URI of a PNG with one pixel per patch, and marked patches in ``MARKED_PATCH``.

    Args:
        map_hw: the values; NaN gets the lowest colour.
        limits: values of the first and the last colour; what is beyond gets these colours.
        colours: name of a colour map of matplotlib.
        marked_hw: patches to mark; None for none.
    """
    low, high = limits
    share = (np.nan_to_num(map_hw, nan=low) - low) / ((high - low) or 1.0)
    index = (share * (LEVELS - 1)).round().clip(0, LEVELS - 1).astype(np.uint8)
    if marked_hw is not None:
        index[marked_hw] = LEVELS
    used, places = np.unique(index, return_inverse=True)
    image = Image.fromarray(places.reshape(map_hw.shape).astype(np.uint8), mode="P")
    image.putpalette(_palette(colours)[used].tobytes(), "RGB")
    written = io.BytesIO()
    image.save(written, format="png", optimize=True)
    return data_uri("png", written.getvalue())


def photograph_pictures(jpeg: bytes) -> tuple[str, str]:
    """Return a photograph and its thumbnail as URIs."""
    small = Image.open(io.BytesIO(jpeg))
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    small.save(written, format="jpeg", quality=75)
    return data_uri("jpeg", jpeg), data_uri("jpeg", written.getvalue())


def cosine_rows(map_hw: NDArray[np.floating], **keys: Any) -> pd.DataFrame:
    """Return a row per patch of a map: the keys, its row and column, and its cosine."""
    rows, columns = np.indices(map_hw.shape).reshape(2, -1)
    values = map_hw.ravel().astype(float).round(3)
    return pd.DataFrame({**keys, "row": rows, "column": columns, "cosine": values})


def colour_ramp(colours: str) -> str:
    """Return a colour scale from low to high as a CSS gradient."""
    shown = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in _palette(colours)[: LEVELS : (LEVELS - 1) // 10]]
    return f"linear-gradient(to right, {', '.join(shown)})"


def data_uri(kind: str, content: bytes) -> str:
    """Return a picture as a URI that contains it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _palette(colours: str) -> NDArray[np.uint8]:
    """Return ``LEVELS`` colours and that of marked patches, (LEVELS + 1, 3)."""
    scale = matplotlib.colormaps[colours](np.linspace(0, 1, LEVELS))[:, :3]
    palette: NDArray[np.uint8] = (255 * np.vstack([scale, to_rgb(MARKED_PATCH)])).round().astype(np.uint8)
    return palette
