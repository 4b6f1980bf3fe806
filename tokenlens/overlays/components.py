"""Principal components of patches through the depth of a model, with the foreground by the first component."""

# Shapes: N images, L blocks, P patches, D channels, C components; h, w the patch grid.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.overlays.map_grid import MapGrid
from tokenlens.overlays.maps import photograph, principal_components
from tokenlens.overlays.selection import (
    block_titles,
    blocks_at,
    covered_by,
    image_count,
    image_title,
    layout_at,
    model_title,
    tokens_at,
)
from tokenlens.recording.recording import Recording
from tokenlens.tokens import Site


@dataclass(frozen=True)
class Foreground:
    """Patches split by their first principal component.

    Args:
        inside_NP: which patches are foreground.
        share_N: their share in each image.
        explained: share of the variance that the component has, in [0, 1].
    """

    inside_NP: NDArray[np.bool_]
    share_N: NDArray[np.float64]
    explained: float


def find_foreground(patch_NPD: Tensor, grid: tuple[int, int]) -> Foreground:
    """Split patches in two by their first principal component, and return the side that is rarer at the border.

    The split is the one that leaves the least variance within the two sides (Otsu's). A component has no sign, so which
    side is the foreground is a convention: the one whose share of the border is smaller than its share of the image.
    """
    components = principal_components(patch_NPD, 1)
    score_NP = components.scores_NPC[:, :, 0]
    high_NP = score_NP > _otsu(score_NP.ravel())
    border_hw = np.ones(grid, dtype=bool)
    border_hw[1:-1, 1:-1] = False
    if high_NP[:, border_hw.ravel()].mean() > high_NP.mean():
        high_NP = ~high_NP
    return Foreground(high_NP, high_NP.mean(1), float(components.explained_C[0]))


def _otsu(values: NDArray[np.float64]) -> float:
    """Return the threshold between two classes that maximizes the variance between them (Otsu 1979)."""
    ordered = np.sort(values)
    count, below = len(ordered), np.arange(1, len(ordered))
    sums = np.cumsum(ordered)
    means_below, means_above = sums[:-1] / below, (sums[-1] - sums[:-1]) / (count - below)
    between = below * (count - below) * (means_above - means_below) ** 2
    best = int(between.argmax()) if len(between) else 0
    return float((ordered[best] + ordered[min(best + 1, count - 1)]) / 2)


def component_maps(
    recording: Recording,
    image: int = 0,
    blocks: Any = None,
    site: str = Site.RESID_POST,
    head: int | None = None,
    together: bool = False,
) -> MapGrid:
    """Return the first three principal components of the foreground as red, green and blue, block by block.

    The first component of all patches separates the foreground, and the components of the foreground alone give its
    colours; the background shows the photograph. A component has no sign: from block to block it is chosen so that
    colours change least.

    Args:
        recording: a recording with the site.
        image: index of the image.
        blocks: as for ``select_blocks``; None for six of them, evenly spaced. Ignored at ``final_norm``.
        site: the site of the patches.
        head: one head at q, k and v; None for the channels of all heads together.
        together: compute the components over all images, so that colours of different images are comparable; by
            default over this image alone.

    Raises:
        LookupError: if the recording lacks something.
    """
    [grid] = component_grids(recording, [image], blocks, site, head, together)
    return grid


def component_grids(
    recording: Recording,
    images: Sequence[int],
    blocks: Any = None,
    site: str = Site.RESID_POST,
    head: int | None = None,
    together: bool = False,
) -> list[MapGrid]:
    """Return ``component_maps`` of several images; components over all images are computed once."""
    if not together:
        return [_grids_of(recording, [image], [image], blocks, site, head, "this image")[0] for image in images]
    count = image_count(recording)
    return _grids_of(recording, images, range(count), blocks, site, head, f"{count} images")


def _grids_of(
    recording: Recording, shown: Sequence[int], over: Sequence[int], blocks: Any, site: str, head: int | None, name: str
) -> list[MapGrid]:
    """Return the maps of some images, with components computed over others, which include them."""
    chosen = blocks_at(recording, blocks, site)
    colours: list[NDArray[np.float64]] = []
    shares: list[NDArray[np.float64]] = []
    previous_PC: NDArray[np.float64] | None = None
    for block in chosen:
        patch_NPD = stack_patches(recording, over, block, site, head)
        grid = layout_at(recording, block, site).grid
        found = find_foreground(patch_NPD, grid)
        colours_NP4, previous_PC = _colours(patch_NPD, found.inside_NP, previous_PC)
        colours.append(colours_NP4.reshape(len(over), *grid, 4))
        shares.append(found.share_N)
    heads = f" · head {head}" if head is not None else ""
    return [
        MapGrid(
            image=image_title(recording, image),
            model=model_title(recording),
            photograph=photograph(recording, image),
            maps=np.stack([colours_Nhw4[row] for colours_Nhw4 in colours]),
            titles=tuple(block_titles(chosen, site)),
            columns=len(chosen),
            captions=tuple(f"{100 * share_N[row]:.0f} %" for share_N in shares),
            covered=covered_by(recording),
            note=f"{site}{heads} · components over {name}: the first separates the foreground (its share under each "
            "map), whose own components are red, green and blue",
        )
        for image, row in ((image, over.index(image)) for image in shown)
    ]


def _colours(
    patch_NPD: Tensor, inside_NP: NDArray[np.bool_], previous_PC: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return colours with opacity (N, P, 4), and the scores that they show, (N·P, 3), NaN in the background."""
    inside = inside_NP.ravel()
    x_MD = patch_NPD.reshape(-1, patch_NPD.shape[-1])[torch.from_numpy(inside)]
    score_PC = np.full((len(inside), 3), np.nan)
    score_PC[inside] = principal_components(x_MD[None]).scores_NPC[0]
    if previous_PC is not None:
        score_PC *= np.where(np.nansum(score_PC * previous_PC, axis=0) < 0, -1, 1)
    low, high = np.percentile(score_PC[inside], (1, 99), axis=0)
    rgb = np.clip((score_PC - low) / np.where(high > low, high - low, 1), 0, 1)
    colours = np.concatenate([np.nan_to_num(rgb), inside[:, None].astype(float)], axis=1)
    return colours.reshape(*inside_NP.shape, 4), score_PC


def stack_patches(
    recording: Recording, images: Sequence[int], block: int, site: str, head: int | None = None
) -> Tensor:
    """Return the patches of some images at a site, (N, P, D), with the channels of all heads together."""
    layout = layout_at(recording, block, site)
    tokens = [tokens_at(recording, image, block, site, head) for image in images]
    return torch.stack([layout.patches_of(x_XTD).transpose(0, 1).flatten(1) for x_XTD in tokens])
