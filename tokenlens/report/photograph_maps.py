"""Maps of single photographs that need no comparison across a norm: norms through the blocks, and all heads."""

# Shapes: N images, L blocks, H heads; h, w the patch grid.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures.style import SEQUENTIAL, plain_number
from tokenlens.metrics.token_norm import HIGH_NORM_RATIO, high_norm_patches
from tokenlens.overlays.map_grid import quantile_limits
from tokenlens.overlays.selection import evenly_spaced
from tokenlens.report.map_pictures import colour_ramp, map_picture


class Titled(NamedTuple):
    """A map as a picture, with a title above it, a number below it, and a description."""

    picture: str
    title: str
    number: str
    described: str


class MapSet(NamedTuple):
    """The maps of one quantity of every photograph, on one scale with its ends and its colours in CSS."""

    title: str
    note: str
    photographs: list[list[Titled]]
    low: str
    high: str
    ramp: str
    shape: tuple[int, int]


def photograph_maps(analysis: Analysis) -> list[MapSet]:
    """Return the norm of each patch through the blocks, and the attention of [CLS] in all heads, if they were kept."""
    kept = analysis.photographs
    if kept is None:
        return []
    return [_norms(analysis), *([] if kept.heads is None else [_heads(analysis)])]


def _norms(analysis: Analysis) -> MapSet:
    kept = analysis.photographs
    assert kept is not None
    blocks = evenly_spaced(kept.blocks)
    norms_NLhw = kept.norms[:, 0, [kept.blocks.index(block) for block in blocks]].astype(np.float32)
    median_NL = np.median(norms_NLhw, axis=(2, 3))
    relative_NLhw = norms_NLhw / np.maximum(median_NL, 1e-12)[:, :, None, None]
    flat_NLP = torch.from_numpy(norms_NLhw.reshape(*norms_NLhw.shape[:2], -1))
    high_NLhw = high_norm_patches(flat_NLP).numpy().reshape(norms_NLhw.shape)
    low, high = quantile_limits(relative_NLhw)
    photographs = [
        [
            Titled(
                map_picture(relative_NLhw[image, row], (low, high), SEQUENTIAL, high_NLhw[image, row]),
                f"block {block}" if not row else str(block),
                f"{high_NLhw[image, row].sum()}",
                f"block {block}: median norm {median_NL[image, row]:.3g}, largest "
                f"{relative_NLhw[image, row].max():.2f} × the median, {high_NLhw[image, row].sum()} high-norm patches",
            )
            for row, block in enumerate(blocks)
        ]
        for image in range(len(kept.names))
    ]
    return MapSet(
        "Norm of each patch before norm1",
        f"‖x‖ over its median in the image. Orange: high-norm patches, above {HIGH_NORM_RATIO:g} × the median; their "
        "number under each map.",
        photographs,
        f"≤ {plain_number(low)}" if low > 0 else "0",
        plain_number(high),
        colour_ramp(SEQUENTIAL),
        kept.norms.shape[-2:],
    )


def _heads(analysis: Analysis) -> MapSet:
    kept = analysis.photographs
    assert kept is not None
    assert kept.heads is not None
    heads_NHhw = kept.heads.astype(np.float32)
    heads_NHhw = np.concatenate([heads_NHhw.mean(1, keepdims=True), heads_NHhw], axis=1)
    shares_NH = heads_NHhw.sum((2, 3))
    relative_NHhw = heads_NHhw / np.maximum(heads_NHhw.mean((2, 3), keepdims=True), 1e-12)
    high = quantile_limits(relative_NHhw)[1]
    photographs = [
        [
            Titled(
                map_picture(map_hw, (0.0, high), SEQUENTIAL),
                "mean" if not head else f"head {head - 1}",
                f"{100 * shares_NH[image, head]:.0f} %",
                f"{'mean over heads' if not head else f'head {head - 1}'}: {100 * shares_NH[image, head]:.1f} % of the "
                f"attention goes to patches, at most {map_hw.max():.1f} × uniform",
            )
            for head, map_hw in enumerate(relative_NHhw[image])
        ]
        for image in range(len(kept.names))
    ]
    return MapSet(
        f"Attention of [CLS] in all heads of block {analysis.blocks - 1}",
        "Attention to each patch over its mean over patches (× uniform). Under each map: the share of attention that "
        "goes to patches.",
        photographs,
        "0",
        plain_number(high),
        colour_ramp(SEQUENTIAL),
        kept.heads.shape[-2:],
    )
