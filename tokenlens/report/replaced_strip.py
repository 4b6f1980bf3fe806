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
from tokenlens.images.files import base_name
from tokenlens.interventions import CONTROL, Intervention
from tokenlens.overlays.selection import evenly_spaced
from tokenlens.report.map_pictures import MapPicture, cosine_rows, data_uri, photograph_pictures


class ReplacedRow(NamedTuple):
    """The maps of one replacement, one for each block; under each the mean cosine of its patches to themselves."""

    label: str
    blocks: list[int]
    maps: list[MapPicture]


class ReplacedPhotograph(NamedTuple):
    """A photograph and its thumbnail, empty without pixels, the map of its untouched patches, and the replacements."""

    name: str
    picture: str
    thumbnail: str
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
    chosen = [(k, each) for k, each in enumerate(kept.conditions) if each.replace in targets and each.site == site]
    blocks = evenly_spaced(tuple(dict.fromkeys(each.block for _, each in chosen)))
    photographs, frames, count = [], [], 0
    for index, path in enumerate(kept.names):
        name = base_name(path)
        rows: dict[str, ReplacedRow] = {}
        for k, condition in chosen:
            target, by, _, block = condition
            if block not in blocks:
                continue
            label = f"{by}, control" if target == CONTROL else by
            cosines_hw = kept.cosines[index, k].astype(float)
            title = f"{label} at block {block}: cosine of the patches to themselves {cosines_hw.mean():.2f} on average"
            picture = _picture(kept.components[index, k])
            row = rows.setdefault(label, ReplacedRow(label, [], []))
            row.blocks.append(block)
            row.maps.append(MapPicture(picture, f"{cosines_hw.mean():.2f}", title, count, *cosines_hw.shape[::-1]))
            keys = condition._asdict() | {"site": str(site)}
            frames.append(cosine_rows(cosines_hw, image=name, **keys))
            count += cosines_hw.size
        pictures = photograph_pictures(kept.jpegs[index]) if kept.jpegs else ("", "")
        h, w = kept.untouched.shape[1:3]
        photographs.append(ReplacedPhotograph(name, *pictures, _picture(kept.untouched[index]), w, h, [*rows.values()]))
    return ReplacedStrip(photographs, f"{group_title(replaced)} at {site}", pd.concat(frames, ignore_index=True))


def _picture(rgb_hw3: NDArray[np.uint8]) -> str:
    written = io.BytesIO()
    Image.fromarray(rgb_hw3).save(written, format="png", optimize=True)
    return data_uri("png", written.getvalue())
