"""Photographs beside their patches' cosine to CLS before and after norm1, as small pictures on one scale."""

# Shapes: N images, L blocks; h, w the patch grid.

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures.style import DIVERGING
from tokenlens.images.files import base_name
from tokenlens.overlays.before_after import signed_text
from tokenlens.overlays.map_grid import round_up
from tokenlens.overlays.selection import evenly_spaced
from tokenlens.report.map_pictures import MapPicture, colour_ramp, cosine_rows, map_picture, photograph_pictures


class MapRow(NamedTuple):
    """The maps of one model before and after norm1, with the blocks above them."""

    label: str
    blocks: list[int]
    before: list[MapPicture]
    after: list[MapPicture]


class Photograph(NamedTuple):
    """A photograph and its thumbnail, empty without pixels, with its rows of maps."""

    name: str
    picture: str
    thumbnail: str
    models: list[MapRow]


class CosineStrip(NamedTuple):
    """Photographs with maps on one scale from −``limit`` to ``limit``, its colours in CSS, and the numbers."""

    photographs: list[Photograph]
    limit: str
    gradient: str
    numbers: pd.DataFrame


def cosine_strip(analyses: Mapping[str, Analysis]) -> CosineStrip | None:
    """Return the strip of one or more models, by label; None without an image that all of them kept."""
    kept = {label: analysis.photographs for label, analysis in analyses.items()}
    if not kept or any(photographs is None for photographs in kept.values()):
        return None
    first = next(iter(kept.values()))
    assert first is not None
    shared = [h for h in first.hashes if all(p is not None and h in p.hashes for p in kept.values())]
    maps = {
        label: (evenly_spaced(p.blocks), p.cosines[[p.hashes.index(h) for h in shared]].astype(np.float32), p.blocks)
        for label, p in kept.items()
        if p is not None
    }
    if not shared:
        return None
    drawn = [cosines[:, :, _places(blocks, every)] for blocks, cosines, every in maps.values()]
    limit = round_up(max(float(np.nanmax(np.abs(cosines))) for cosines in drawn))
    photographs, frames, count = [], [], 0
    for index, image in enumerate(shared):
        position = first.hashes.index(image)
        name = base_name(first.names[position])
        rows = []
        for label, (blocks, cosines, every) in maps.items():
            sides = []
            for side, when in enumerate(("before", "after")):
                line = []
                for block, place in zip(blocks, _places(blocks, every), strict=True):
                    map_hw = cosines[index, side, place]
                    line.append(_map(map_hw, limit, f"block {block}, {when} norm1", count))
                    frames.append(cosine_rows(map_hw, model=label, image=name, block=block, norm1=when))
                    count += map_hw.size
                sides.append(line)
            rows.append(MapRow(label, list(blocks), *sides))
        pictures = ("", "") if not first.jpegs else photograph_pictures(first.jpegs[position])
        photographs.append(Photograph(name, *pictures, rows))
    return CosineStrip(photographs, f"{limit:g}", colour_ramp(DIVERGING), pd.concat(frames, ignore_index=True))


def _map(map_hw: NDArray[np.float32], limit: float, where: str, first: int) -> MapPicture:
    """Return a map, whose numbers begin at row ``first`` of the strip's frame."""
    mean, low, high = (signed_text(float(value)) for value in (map_hw.mean(), map_hw.min(), map_hw.max()))
    return MapPicture(
        map_picture(map_hw, (-limit, limit), DIVERGING),
        mean,
        f"{where}: mean {mean}, {low} to {high}",
        first,
        *map_hw.shape[::-1],
    )


def _places(blocks: list[int], every: tuple[int, ...]) -> list[int]:
    return [every.index(block) for block in blocks]
