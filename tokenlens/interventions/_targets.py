"""The tokens that are replaced: a group, a share of the patches, high-norm patches or their control."""

# Shapes: B images, T tokens, P patches.

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenlens.metrics import high_norm_patches
from tokenlens.tokens import TokenLayout

CONTROL = "high_norm_control"
"""As many random patches as there are high-norm ones, none of them among these."""

TARGETS = ("cls", "dist", "reg", "patch", "high_norm", CONTROL)
"""Names of the tokens that ``intervene`` can replace, besides further groups of special tokens that a family has."""


def generator(seed: int, image: int, use: int) -> torch.Generator:
    """Return the random numbers of one image, which depend neither on its batch nor on the other images."""
    state = np.random.SeedSequence([seed, use, image]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


def chosen_tokens(
    target: str, layout: TokenLayout, norms_BT: Tensor | None, indices: Sequence[int], share: float, seed: int
) -> Tensor:
    """Return which tokens are replaced, (B, T) bool on the CPU.

    Args:
        target: one of ``TARGETS``, or a group of the layout.
        layout: the model's tokens.
        norms_BT: norms of the tokens at the block's ``resid_post``, for ``high_norm`` and its control.
        indices: the images' indices, which seed random choices.
        share: share of the patches that ``patch`` replaces, at least one patch.
        seed: seed of random choices.
    """
    chosen_BT = torch.zeros(len(indices), layout.tokens, dtype=torch.bool)
    if target not in ("patch", "high_norm", CONTROL):
        chosen_BT[:, list(layout.positions(target))] = True
        return chosen_BT
    chosen_BP = torch.zeros(len(indices), layout.patches, dtype=torch.bool)
    if target == "patch":
        count = max(1, round(share * layout.patches))
        for row, image in enumerate(indices):
            order = torch.randperm(layout.patches, generator=generator(seed, image, use=0))
            chosen_BP[row, order[:count]] = True
    else:
        assert norms_BT is not None
        high_BP = high_norm_patches(layout.patches_of(norms_BT, -1)).cpu()
        if target == "high_norm":
            chosen_BP = high_BP
        else:
            for row, image in enumerate(indices):
                others = (~high_BP[row]).nonzero().flatten()
                order = others[torch.randperm(len(others), generator=generator(seed, image, use=1))]
                chosen_BP[row, order[: int(high_BP[row].sum())]] = True
    chosen_BT[:, list(layout.positions("patch"))] = chosen_BP
    return chosen_BT


def check_target(target: str, layout: TokenLayout, share: float) -> str | None:
    """Return why a target cannot be replaced in this model, or None.

    Raises:
        ValueError: for a share outside (0, 1].
    """
    if not 0 < share <= 1 or math.isnan(share):
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    if target in ("patch", "high_norm", CONTROL) or layout.has(target):
        return None
    return f"the model has no {target} token; its tokens are {', '.join(layout.groups)}"
