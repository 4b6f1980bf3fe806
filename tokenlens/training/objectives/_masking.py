"""Block masks as in DINOv2, and how they are put on a model from outside."""

# Shapes: R crops that are asked for, N crops, P patches, h and w rows and columns of the patch grid, D channels.

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
"""Patches of a block that is tried; the last one of a mask may be smaller."""


def block_masks(
    rows: Sequence[int],
    of: int,
    grid: tuple[int, int],
    share: float,
    ratio: tuple[float, float],
    seed: tuple[int, ...],
) -> Tensor:
    """Which patches are masked, true where they are: (R, h, w) for some rows of a batch of ``of`` crops.

    A ``share`` of the crops, drawn at random, is masked; the k-th of n masked ones in a share of its patches between
    the k-th and the next of n + 1 numbers that lie evenly over ``ratio``, so every batch has light and heavy masks. A
    mask consists of rectangles with sides between 0.3 : 1 and 1 : 0.3, and stays below its share where no more fit.

    All rows come from ``seed`` and each has a stream of its own: the masks of a row do not depend on which others are
    asked for, so each process draws those of its own images. (lightly's ``random_block_mask`` draws whole batches.)
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
    with _python_random_restored():
        for place, row in enumerate(rows):
            random.seed(int(seeds[row]))
            masks_Rhw[place] = random_block_mask_image(
                (height, width),
                int(patches[row]),
                min_num_masks_per_block=SMALLEST_BLOCK,
                max_num_masks_per_block=max(SMALLEST_BLOCK, height * width // 2),
            )
    return masks_Rhw


@contextmanager
def masked_patches(patch_embed: nn.Module, masks_NP: Tensor, token_D: Tensor) -> Iterator[None]:
    """While this lasts, the patch embedding gives the mask token for masked patches (before positions are added)."""

    def replaced(module: nn.Module, inputs: Any, patches: Tensor) -> Tensor:
        # timm gives (N, P, D) at one image size and (N, h, w, D) where the size is free.
        masks = masks_NP.view(*patches.shape[:-1], 1)
        return torch.where(masks, token_D.to(patches.dtype), patches)

    handle = patch_embed.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _python_random_restored() -> Iterator[None]:
    """lightly draws its blocks from Python's own generator."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
