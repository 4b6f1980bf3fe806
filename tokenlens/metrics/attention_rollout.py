"""Attention rollout: the share of each token in CLS through all blocks so far."""
# Shapes: B images, H heads, T tokens, P patches; "..." any leading axes.

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from tokenlens.metrics._per_image import PatternMetric, PerImageMetric, Values
from tokenlens.metrics.attention_entropy import attention_entropy
from tokenlens.metrics.base import NamedArray
from tokenlens.recording.attention import as_float
from tokenlens.reduction.pattern import rollout_rows
from tokenlens.reduction.summaries import BatchSummary, PatternSummary
from tokenlens.statistics.moments import Moments
from tokenlens.tokens import take


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


class AttentionRollout(PatternMetric):
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
    needs = frozenset({"cls", "several_patches", "rollout"})
    cost = (
        "a pass over the whole pattern and a T×T product for each image and block: about 15 % of a ViT-S forward pass "
        "at 197 tokens, 1.4 times that pass at 1370 (CPU); holds two T×T matrices per image"
    )

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[int] = []
        self._maps = Moments()

    def per_image(self, summary: PatternSummary) -> Values:
        """Compute mass and entropy of the CLS row of the rollout."""
        row, layout = summary.cls_rollout, summary.layout
        assert row is not None
        values = {("mass", f"cls-{group}"): take(row, layout.positions(group), -1).sum(-1) for group in layout.groups}
        if layout.attention_bias:
            values["mass", "cls-bias"] = 1 - row.sum(-1)
        entropy = attention_entropy(layout.patches_of(row, -1))
        return values | {("normalized_entropy", "cls-patch"): entropy / math.log(layout.patches)}

    def update(self, batch: BatchSummary) -> None:
        """Add one batch."""
        super().update(batch)
        for stack in batch.stacks(self.summary_kind, self.chosen_sites):
            maps_NBP = stack.summary.layout.patches_of(stack.summary.cls_rollout, -1)
            self._blocks = [block for block, _ in stack.keys if block is not None]
            self._maps.update(maps_NBP.transpose(0, 1).flatten(1).cpu().numpy())

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
