"""Block masks as in DINOv2, and masking of patches in an unmodified model."""

# Shapes: R requested crops, N crops, P patches, h and w rows and columns of the patch grid, D channels.

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightly.models.utils import random_block_mask_image
from torch import Tensor, nn

SMALLEST_BLOCK = 4
"""Smallest number of patches of a block; the last block of a mask may be smaller."""


def block_masks(
    rows: Sequence[int],
    of: int,
    grid: tuple[int, int],
    share: float,
    ratio: tuple[float, float],
    seed: tuple[int, ...],
) -> Tensor:
    """Return masks (R, h, w), true for masked patches, for some rows of a batch of ``of`` crops.

    A random ``share`` of the crops is masked. Divide ``ratio`` into n equal intervals for n masked crops: the share of
    masked patches of the k-th one lies in the k-th interval, so every batch has light and heavy masks. A mask consists
    of rectangles with aspect ratios between 0.3 and 1 / 0.3, and stays below its share if no more fit.

    Each row has its own random stream, derived from ``seed``. The mask of a row does not depend on which others are
    requested, so each process draws those of its images only. (lightly's ``random_block_mask`` draws whole batches.)
    """
    height, width = grid
    generator = np.random.default_rng(seed)
    masked = int(of * share)
    edges = np.linspace(*ratio, masked + 1)
    patches = np.zeros(of, dtype=np.int64)
    patches[:masked] = (generator.uniform(edges[:-1], edges[1:]) * height * width).astype(np.int64)
    generator.shuffle(patches)
    seeds = generator.integers(2**63, size=of)
    masks_Rhw = torch.zeros(len(rows), height, width, dtype=torch.bool)
    with _preserve_python_random():
        for i, row in enumerate(rows):
            random.seed(int(seeds[row]))
            masks_Rhw[i] = random_block_mask_image(
                (height, width),
                int(patches[row]),
                min_num_masks_per_block=SMALLEST_BLOCK,
                max_num_masks_per_block=max(SMALLEST_BLOCK, height * width // 2),
            )
    return masks_Rhw


@contextmanager
def masked_patches(patch_embed: nn.Module, masks_NP: Tensor, token_D: Tensor) -> Iterator[None]:
    """Replace masked patches by the mask token after the patch embedding, before positions are added."""

    def replaced(module: nn.Module, inputs: Any, patches: Tensor) -> Tensor:
        # timm returns (N, P, D) for a fixed image size and (N, h, w, D) for a dynamic one.
        masks = masks_NP.view(*patches.shape[:-1], 1)
        return torch.where(masks, token_D.to(patches.dtype), patches)

    handle = patch_embed.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _preserve_python_random() -> Iterator[None]:
    """Restore Python's random generator, from which lightly draws its blocks."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
