"""Where on the grid CLS looks, mean over images."""
# Shapes: N blocks, B images, H heads, P patches; "..." any leading axes.

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenlens.metrics.base import AttentionMetric, NamedArray, PerImageMetric, Subject, Values, by_block
from tokenlens.reduction.batch import BatchSummary
from tokenlens.reduction.summaries import AttentionSummary
from tokenlens.tokens import TokenLayout


def attention_peak(row_BHP: Tensor) -> Tensor:
    """P × the largest share of the attention over patches, (B, H), in [1, P]; 1 is uniform."""
    return row_BHP.shape[-1] * row_BHP.amax(-1) / row_BHP.sum(-1)


class CLSAttentionMap(AttentionMetric):
    """Mean map and its spread per block and head as arrays (block, head, row, column); its peak in the table."""

    title = "CLS attention map"
    unit = "× uniform"
    requires = ("cls",)

    def __init__(self) -> None:
        super().__init__()
        self._keys: list[list[tuple[int | None, str]]] = []
        self._layout: TokenLayout | None = None
        self._count = 0
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []

    def prepare(self, subject: Subject) -> str | None:
        """Remember the grid."""
        self._layout = subject.layout
        return super().prepare(subject)

    def per_image(self, summary: AttentionSummary) -> Values:
        """The peak of each image's map."""
        assert summary.cls_row is not None
        return {("peak", "cls-patch"): attention_peak(summary.cls_row[..., summary.layout.patch_slice])}

    def update(self, batch: BatchSummary) -> None:
        """Take in one batch."""
        super().update(batch)
        self._count += len(batch.indices)
        for index, cells in enumerate(batch.stacks(self.of, self.sites)):
            maps_NBHP = cells.summary.cls_row[..., cells.summary.layout.patch_slice]
            if index == len(self._keys):
                self._keys.append(cells.keys)
                self._sums.append(torch.zeros_like(maps_NBHP[:, 0]))
                self._squares.append(torch.zeros_like(maps_NBHP[:, 0]))
            self._sums[index] += maps_NBHP.sum(1)
            self._squares[index] += maps_NBHP.square().sum(1)

    def merge(self, other: PerImageMetric) -> None:
        """Take in what another instance has seen."""
        super().merge(other)
        assert isinstance(other, CLSAttentionMap)
        self._count += other._count
        if not self._keys:
            self._keys, self._sums, self._squares = other._keys, other._sums, other._squares
            return
        for index in range(len(other._keys)):
            self._sums[index] += other._sums[index].to(self._sums[index].device)
            self._squares[index] += other._squares[index].to(self._squares[index].device)

    def arrays(self) -> dict[str, NamedArray]:
        """``mean`` and ``sd`` over images, attention to each patch (all tokens' attention sums to 1)."""
        if len(self._keys) != 1:
            return {}
        assert self._layout is not None
        mean = self._sums[0].cpu().double().numpy() / self._count
        square = self._squares[0].cpu().double().numpy() / self._count
        few = np.nan if self._count < 2 else self._count / (self._count - 1)
        variance = np.maximum(square - mean**2, 0) * few
        dims = ("block", "head", "row", "column")
        arrays = {}
        for part, values in (("mean", mean), ("sd", np.sqrt(variance))):
            ordered = by_block(self._keys[0], values, "pattern")
            assert ordered is not None
            arrays[part] = NamedArray(ordered.reshape(*ordered.shape[:2], *self._layout.grid), dims, "attention")
        return arrays
