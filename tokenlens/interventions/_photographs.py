"""The first photographs of an intervention: maps of their final patches, untouched and under every condition."""

# Shapes: N images, K conditions, B images of a batch, P patches, D channels; h, w the patch grid; 3 colours.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.analysis.photographs import MOST_PHOTOGRAPHS, jpeg_of, pack_jpegs, unpack_jpegs
from tokenlens.interventions._effects import token_cosines
from tokenlens.interventions.base import Condition
from tokenlens.statistics.components import principal_axes
from tokenlens.tokens import Site

PERCENTILES = (1, 99)
"""Scores of the untouched patches that become the darkest and the brightest value of a colour."""


@dataclass(frozen=True)
class ReplacedPhotographs:
    """Maps over the final patches of a few images, untouched and under each condition.

    Attributes:
        names: of the images.
        hashes: their SHA-256.
        conditions: in the order of the maps.
        untouched: the first three principal components of an image's untouched patches as colours, uint8,
            (N, h, w, 3).
        components: the patches under each condition in the same components and colours, (N, K, h, w, 3).
        cosines: cosine of each patch to itself in the untouched pass, float16, (N, K, h, w).
        jpegs: each photograph as the model saw it; empty if pixels are not kept.
    """

    names: tuple[str, ...]
    hashes: tuple[str, ...]
    conditions: tuple[Condition, ...]
    untouched: NDArray[np.uint8]
    components: NDArray[np.uint8]
    cosines: NDArray[np.float16]
    jpegs: tuple[bytes, ...] = ()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return maps and JPEGs as arrays by name."""
        maps: dict[str, NDArray[Any]] = {
            "untouched": self.untouched,
            "components": self.components,
            "cosines": self.cosines,
        }
        return maps | pack_jpegs(self.jpegs)

    def describe(self) -> dict[str, Any]:
        """Return what is not in ``to_arrays``; JSON-able."""
        return {
            "names": list(self.names),
            "hashes": list(self.hashes),
            "conditions": [list(condition.key()) for condition in self.conditions],
        }

    @classmethod
    def from_arrays(cls, described: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ReplacedPhotographs:
        """Return what ``describe`` and ``to_arrays`` wrote."""
        return cls(
            names=tuple(described["names"]),
            hashes=tuple(described["hashes"]),
            conditions=tuple(
                Condition(replace, by, Site(site), block) for replace, by, site, block in described["conditions"]
            ),
            untouched=arrays["untouched"],
            components=arrays["components"],
            cosines=arrays["cosines"],
            jpegs=unpack_jpegs(arrays),
        )


@dataclass
class PhotographMaps:
    """The maps of one photograph while the conditions run.

    Args:
        index: of the image in its source.
        name: of the image.
        hash: its SHA-256.
        pixels_CHW: as the model takes them.
        patch_PD: the untouched final patches.
        grid: rows and columns of patches.
    """

    index: int
    name: str
    hash: str
    pixels_CHW: Tensor
    patch_PD: Tensor
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        self.components: list[NDArray[np.uint8]] = []
        self.cosines: list[NDArray[np.float16]] = []
        x_PD = self.patch_PD.cpu().double().numpy()
        self._axes = principal_axes(x_PD)
        self._low, self._high = np.percentile(self._axes.scores(x_PD), PERCENTILES, axis=0)
        self.untouched = self._colours(x_PD)
        self.patch_PD = self.patch_PD.clone()

    def add(self, patch_PD: Tensor) -> None:
        """Add the final patches under the next condition."""
        self.components.append(self._colours(patch_PD.cpu().double().numpy()))
        cosines_P = token_cosines(self.patch_PD[None], patch_PD[None])[0]
        self.cosines.append(cosines_P.cpu().numpy().astype(np.float16).reshape(self.grid))

    def _colours(self, x_PD: NDArray[np.float64]) -> NDArray[np.uint8]:
        scores_PC = self._axes.scores(x_PD)
        rgb = np.full((len(x_PD), 3), 0.5)  # a colour for components beyond the number of patches
        spread = np.where(self._high > self._low, self._high - self._low, 1)
        rgb[:, : scores_PC.shape[1]] = np.clip((scores_PC - self._low) / spread, 0, 1)
        colours: NDArray[np.uint8] = (255 * rgb).round().astype(np.uint8).reshape(*self.grid, 3)
        return colours


def choose_photographs(indices: Sequence[int]) -> list[int]:
    """Return the rows of a batch that hold one of the first images of the source."""
    return [row for row, index in enumerate(indices) if index < MOST_PHOTOGRAPHS]


def join_photographs(
    maps: Sequence[PhotographMaps],
    conditions: Sequence[Condition],
    mean: Sequence[float],
    std: Sequence[float],
    pixels: bool,
) -> ReplacedPhotographs | None:
    """Return the maps of all photographs in the order of the source; None if there are none.

    Args:
        maps: of each photograph.
        conditions: in the order in which maps were added.
        mean: of the normalization that the images went through.
        std: likewise.
        pixels: whether to keep the photographs themselves.
    """
    if not maps or not conditions:
        return None
    maps = sorted(maps, key=lambda each: each.index)
    colour = pixels and all(each.pixels_CHW.shape[0] == 3 for each in maps)
    return ReplacedPhotographs(
        names=tuple(each.name for each in maps),
        hashes=tuple(each.hash for each in maps),
        conditions=tuple(conditions),
        untouched=np.stack([each.untouched for each in maps]),
        components=np.stack([np.stack(each.components) for each in maps]),
        cosines=np.stack([np.stack(each.cosines) for each in maps]),
        jpegs=tuple(jpeg_of(each.pixels_CHW, mean, std) for each in maps) if colour else (),
    )
