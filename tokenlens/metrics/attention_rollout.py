"""Attention rollout: the share of each token in CLS through all blocks so far."""
# Shapes: B images, H heads, T tokens, P patches; "..." any leading axes.

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from tokenlens.metrics._per_image import AttentionCallMetric, PerImageMetric, Values
from tokenlens.metrics.attention_entropy import attention_entropy
from tokenlens.metrics.base import NamedArray, Subject
from tokenlens.recording.attention import AttentionCall, as_float, avoid_tf32
from tokenlens.reduction.summaries import BatchSummary, to_float64
from tokenlens.statistics.moments import Moments
from tokenlens.tokens import Key, TokenLayout, take

MAP = ("map", "cls-patch")
"""Key of the CLS row over the patches, (B, P), among the values of ``look``; only its mean and spread are kept."""


def rollout_rows(pattern_BHRT: Tensor, rows: slice, before_BTT: Tensor | None) -> Tensor:
    """Compute rows of the rollout R_l = Ã_l·R_{l−1} with Ã = ½·(mean of A over heads) + ½·I, (B, R, T); each sums to 1.

    Args:
        pattern_BHRT: the same rows of the block's pattern A.
        rows: the indices of these rows.
        before_BTT: the rollout R_{l−1} of the previous block; None (the identity) in the first block.
    """
    mean_BRT = avoid_tf32(pattern_BHRT.mean(1))
    if before_BTT is None:
        rollout_BRT = mean_BRT / 2
        rollout_BRT.diagonal(offset=rows.start, dim1=-2, dim2=-1).add_(0.5)
        return rollout_BRT
    return torch.baddbmm(before_BTT[:, rows], mean_BRT, before_BTT, beta=0.5, alpha=0.5)


def attention_rollout(patterns: Iterable[Tensor]) -> Tensor:
    """Compute the rollout R = Ã_L ⋯ Ã_1 of blocks in order, Ã = ½·(mean of A over heads) + ½·I: (B, T, T).

    R_ij estimates the share of token j before the first block in token i after the last; rows sum to 1. Abnar and
    Zuidema, Quantifying Attention Flow in Transformers (ACL 2020).

    Args:
        patterns: (B, H, T, T) of each block in order, as in ``Recording.patterns``.

    >>> import torch
    >>> attention_rollout([torch.full((1, 1, 2, 2), 0.5)] * 2)
    tensor([[[0.6250, 0.3750],
             [0.3750, 0.6250]]])
    """
    rollout_BTT: Tensor | None = None
    for pattern_BHTT in patterns:
        rollout_BTT = rollout_rows(as_float(pattern_BHTT), slice(0, pattern_BHTT.shape[-2]), rollout_BTT)
    if rollout_BTT is None:
        raise ValueError("rollout needs the pattern of at least one block, got none")
    return rollout_BTT


class AttentionRollout(AttentionCallMetric):
    """Rollout of the CLS row after each block: its mass on each token group, its entropy over patches, and its map.

    Formula: CLS row of R_l = Ã_l Ã_(l−1) ⋯ Ã_1, where Ã = ½·(mean of A over heads) + ½·I; it sums to 1.
    Parts:
        mass: sum over the tokens of a group (``cls-cls``, ``cls-reg``, ``cls-patch``, …), in [0, 1]. ``cls-bias`` is
            what attention biases of all blocks so far took: their keys are no tokens, and end a path.
        normalized_entropy: entropy over patches, normalized to sum to 1, over log P, in [0, 1]; 1 is uniform.
    Arrays: ``mean`` and ``sd`` over images of the share of each patch (block, row, column).
    Reference: Abnar and Zuidema 2020 (ACL, arXiv 2005.00928).
    Pitfalls: Counts attention and residual one half each and ignores values, MLPs and the sizes of updates
        (``update_ratio``): a summary, not an attribution. Even uniform attention leaves CLS 2⁻ˡ of itself.
    Tested against: products of stored patterns, image by image.
    """

    title = "attention rollout"
    unit = {"mass": "share", "normalized_entropy": "entropy / log P"}  # noqa: RUF012
    needs = frozenset({"cls", "several_patches"})
    cost = (
        "a pass over the whole pattern and a T×T product for each image and block: about 15 % of a ViT-S forward pass "
        "at 197 tokens, 1.4 times that pass at 1370 (CPU); holds two T×T matrices per image"
    )

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[int] = []
        self._maps = Moments()
        self._rollout_BTT: Tensor | None = None
        self._next_block = self._last_block = 0

    def prepare(self, subject: Subject) -> str | None:
        """Note the last block, after which the T×T matrices are not kept."""
        self._last_block = subject.blocks - 1
        return super().prepare(subject)

    def look(self, layout: TokenLayout, block: int, call: AttentionCall) -> Values:
        """Compute mass, entropy and map of the CLS row of the rollout up to this block.

        Raises:
            ValueError: if the blocks do not arrive in order.
        """
        if block == 0:
            self._next_block, self._rollout_BTT = 0, None
        if block != self._next_block:
            raise ValueError(
                "attention rollout multiplies the blocks in the order in which they run, which is the order of the "
                f"family's blocks(): expected block {self._next_block}, got block {block}"
            )
        self._next_block = block + 1
        rollout_BTT: Tensor | None = None
        for rows, pattern_BHRT in call.row_blocks():
            part_BRT = rollout_rows(pattern_BHRT, rows, self._rollout_BTT)
            if rollout_BTT is None:
                rollout_BTT = part_BRT.new_empty(len(part_BRT), layout.tokens, layout.tokens)
            rollout_BTT[:, rows] = part_BRT
        assert rollout_BTT is not None
        self._rollout_BTT = None if block == self._last_block else rollout_BTT
        row_BT = to_float64(layout.mean_of(rollout_BTT, "cls"))
        values = {
            ("mass", f"cls-{group}"): take(row_BT, layout.positions(group), -1).sum(-1) for group in layout.groups
        }
        if layout.attention_bias:
            values["mass", "cls-bias"] = 1 - row_BT.sum(-1)
        patches_BP = layout.patches_of(row_BT, -1)
        entropy_B = attention_entropy(patches_BP) / math.log(layout.patches)
        return values | {("normalized_entropy", "cls-patch"): entropy_B, MAP: patches_BP}

    def results(self, batch: BatchSummary) -> Iterable[tuple[list[Key], Values]]:
        """Yield the numbers without the maps."""
        for keys, values in super().results(batch):
            yield keys, {name: value for name, value in values.items() if name != MAP}

    def update(self, batch: BatchSummary) -> None:
        """Add one batch."""
        super().update(batch)
        found = batch.raw.get(self.name, {})
        if found:
            self._blocks = [block for block, _ in found if block is not None]
            self._maps.update(torch.cat([values[MAP] for values in found.values()], dim=1).cpu().numpy())

    def merge(self, other: PerImageMetric) -> None:
        """Add the images of another instance."""
        super().merge(other)
        assert isinstance(other, AttentionRollout)
        self._blocks = self._blocks or other._blocks
        self._maps.merge(other._maps)

    def arrays(self) -> dict[str, NamedArray]:
        """Return the mean map and its spread over images."""
        if not self._blocks:
            return {}
        assert self._blocks == sorted(self._blocks)
        shape, dims = (len(self._blocks), *self.layout.grid), ("block", "row", "column")
        parts = {"mean": self._maps.mean, "sd": self._maps.sd}
        return {part: NamedArray(np.reshape(values, shape), dims, "share") for part, values in parts.items()}
