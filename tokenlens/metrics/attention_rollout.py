"""Where CLS's information comes from, through all blocks so far: attention rollout."""
# Shapes: B images, H heads, T tokens, P patches; "..." any leading axes.

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from tokenlens.metrics.attention_entropy import attention_entropy
from tokenlens.metrics.base import AttentionMetric, NamedArray, PerImageMetric, Subject, Values
from tokenlens.recording.attention import as_float
from tokenlens.reduction.batch import BatchSummary
from tokenlens.reduction.pattern import rollout_rows
from tokenlens.reduction.summaries import PatternSummary
from tokenlens.statistics.moments import Moments


def attention_rollout(patterns: Iterable[Tensor]) -> Tensor:
    """Rollout R = Ã_L ⋯ Ã_1 of blocks in order, Ã = ½·(mean of A over heads) + ½·I: (B, T, T), rows sum to 1.

    R_ij is how much of token i after the last block came from token j before the first, if attention and residual
    count one half each and values, MLPs and the sizes of updates are left out of account. Abnar and Zuidema,
    Quantifying Attention Flow in Transformers (ACL 2020).

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


class AttentionRollout(AttentionMetric):
    """Of CLS at each block: mass on each token group, entropy over patches, and the map as an array."""

    title = "attention rollout"
    unit = {"mass": "share", "normalized_entropy": "entropy / log P"}  # noqa: RUF012
    requires = ("cls",)
    of = PatternSummary
    wanted_of_pattern = frozenset({"rollout"})
    opt_in = True
    cost = (
        "a pass over the whole pattern and a T×T product for each image and block: about 15 % of a ViT-S forward pass "
        "at 197 tokens, 1.4 times it at 1370 (CPU); holds two T×T matrices an image"
    )

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[int] = []
        self._grid = (0, 0)
        self._maps = Moments()

    def prepare(self, subject: Subject) -> str | None:
        """Remember the grid; with one patch log P is 0."""
        self._grid = subject.layout.grid
        return "the image is one single patch" if subject.layout.patches < 2 else super().prepare(subject)

    def per_image(self, summary: PatternSummary) -> Values:
        """From the CLS row of the rollout."""
        row, layout = summary.cls_rollout, summary.layout
        assert row is not None
        values = {("mass", f"cls-{group}"): row[..., list(layout.positions(group))].sum(-1) for group in layout.groups}
        entropy = attention_entropy(row[..., layout.patch_slice])
        return values | {("normalized_entropy", "cls-patch"): entropy / math.log(layout.patches)}

    def update(self, batch: BatchSummary) -> None:
        """Take in one batch."""
        super().update(batch)
        for cells in batch.stacks(self.of, self.sites):
            maps_NBP = cells.summary.cls_rollout[..., cells.summary.layout.patch_slice]
            self._blocks = [block for block, _ in cells.keys if block is not None]
            self._maps.update(maps_NBP.transpose(0, 1).flatten(1).cpu().numpy())

    def merge(self, other: PerImageMetric) -> None:
        """Take in what another instance has seen."""
        super().merge(other)
        assert isinstance(other, AttentionRollout)
        self._blocks = self._blocks or other._blocks
        self._maps.merge(other._maps)

    def arrays(self) -> dict[str, NamedArray]:
        """``mean`` and ``sd`` over images of the share of each patch (all tokens' shares sum to 1)."""
        if not self._blocks:
            return {}
        assert self._blocks == sorted(self._blocks)
        shape = (len(self._blocks), *self._grid)
        parts = {"mean": self._maps.mean, "sd": self._maps.sd}
        dims = ("block", "row", "column")
        return {part: NamedArray(np.reshape(values, shape), dims, "share") for part, values in parts.items()}
