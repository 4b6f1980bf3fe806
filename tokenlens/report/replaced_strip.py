"""Photographs with the principal components of their final patches, untouched and under each replacement."""

# Shapes: N images, K conditions; h, w the patch grid; 3 colours.

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tokenlens.figures.base import group_title
from tokenlens.interventions import CONTROL, Intervention
from tokenlens.overlays.selection import evenly_spaced
from tokenlens.report.map_pictures import data_uri


class ReplacedMap(NamedTuple):
    """The patches under one condition as a picture, the mean of their cosines to themselves, and a description."""

    picture: str
    cosine: str
    title: str
    first: int
    columns: int
    rows: int


class ReplacedRow(NamedTuple):
    """The maps of one replacement, one for each block."""

    label: str
    blocks: list[int]
    maps: list[ReplacedMap]


class ReplacedPhotograph(NamedTuple):
    """A photograph, empty without pixels, the map of its untouched patches, and the rows of the replacements."""

    name: str
    picture: str
    untouched: str
    columns: int
    rows: int
    replacements: list[ReplacedRow]


class ReplacedStrip(NamedTuple):
    """Photographs with their maps, what is replaced where, and the cosines of all patches."""

    photographs: list[ReplacedPhotograph]
    replaced: str
    numbers: pd.DataFrame


def replaced_strip(intervention: Intervention) -> ReplacedStrip | None:
    """Return the strip of the first replaced group and site; None without photographs."""
    kept = intervention.photographs
    if kept is None:
        return None
    replaced, _, site, _ = kept.conditions[0]
    targets = (replaced, CONTROL) if replaced == "high_norm" else (replaced,)
    chosen = [(k, each) for k, each in enumerate(kept.conditions) if each[0] in targets and each[2] == site]
    blocks = evenly_spaced(tuple(dict.fromkeys(block for _, (*_, block) in chosen)))
    photographs, frames, count = [], [], 0
    for index, path in enumerate(kept.names):
        name = path.replace("\\", "/").rpartition("/")[2]
        rows: dict[str, ReplacedRow] = {}
        for k, (target, by, _, block) in chosen:
            if block not in blocks:
                continue
            label = f"{by}, control" if target == CONTROL else by
            cosines_hw = kept.cosines[index, k].astype(float)
            title = f"{label} at block {block}: cosine of the patches to themselves {cosines_hw.mean():.2f} on average"
            picture = _picture(kept.components[index, k])
            row = rows.setdefault(label, ReplacedRow(label, [], []))
            row.blocks.append(block)
            row.maps.append(ReplacedMap(picture, f"{cosines_hw.mean():.2f}", title, count, *cosines_hw.shape[::-1]))
            frames.append(_frame(name, target, by, site, block, cosines_hw))
            count += cosines_hw.size
        jpeg = data_uri("jpeg", kept.jpegs[index]) if kept.jpegs else ""
        h, w = kept.untouched.shape[1:3]
        photographs.append(ReplacedPhotograph(name, jpeg, _picture(kept.untouched[index]), w, h, [*rows.values()]))
    return ReplacedStrip(photographs, f"{group_title(replaced)} at {site}", pd.concat(frames, ignore_index=True))


def _frame(name: str, target: str, by: str, site: str, block: int, cosines_hw: NDArray[np.float64]) -> pd.DataFrame:
    rows, columns = np.indices(cosines_hw.shape).reshape(2, -1)
    keys = {"image": name, "replace": target, "by": by, "site": site, "block": block}
    return pd.DataFrame({**keys, "row": rows, "column": columns, "cosine": cosines_hw.ravel().round(3)})


def _picture(rgb_hw3: NDArray[np.uint8]) -> str:
    written = io.BytesIO()
    Image.fromarray(rgb_hw3).save(written, format="png", optimize=True)
    return data_uri("png", written.getvalue())
