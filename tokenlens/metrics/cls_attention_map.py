"""Map of the attention of CLS to the patches, mean over images."""
# Shapes: N blocks, B images, H heads, P patches; "..." any leading axes.

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenlens.metrics._per_image import AttentionMetric, PerImageMetric, Values
from tokenlens.metrics.base import PATTERN, NamedArray, by_block
from tokenlens.reduction.summaries import AttentionSummary, BatchSummary


def attention_peak(row_BHP: Tensor) -> Tensor:
    """Compute P × the largest share of the attention over patches, (B, H), in [1, P]; 1 is uniform."""
    return row_BHP.shape[-1] * row_BHP.amax(-1) / row_BHP.sum(-1)


class CLSAttentionMap(AttentionMetric):
    """Mean map of CLS's attention per block and head as arrays, and the peak of each image's map in the table.

    Formula: part ``peak`` = P·max a_i / Σ a_i over the patches of the CLS row a, in [1, P]; 1 is uniform.
    Arrays: ``mean`` and ``sd`` over images (block, head, row, column) of the attention to each patch; the attention to
        all tokens, special ones included, sums to 1.
    Reference: Caron et al. 2021 (arXiv 2104.14294), figure 1.
    Pitfalls: A mean over images shows preferences for positions, not objects. The peak is a maximum, too skewed for an
        interval below 16 images.
    Tested against: CLS rows of stored patterns.
    """

    title = "CLS attention map"
    unit = "× uniform"
    fewest_images = 16
    needs = frozenset({"cls"})

    def __init__(self) -> None:
        super().__init__()
        self._keys: list[list[tuple[int | None, str]]] = []
        self._count = 0
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []

    def per_image(self, summary: AttentionSummary) -> Values:
        """Compute the peak of each image's map."""
        assert summary.cls_row is not None
        return {("peak", "cls-patch"): attention_peak(summary.layout.patches_of(summary.cls_row, -1))}

    def update(self, batch: BatchSummary) -> None:
        """Add one batch."""
        super().update(batch)
        self._count += len(batch.indices)
        for index, stack in enumerate(batch.stacks(self.summary_kind, self.chosen_sites)):
            maps_NBHP = stack.summary.layout.patches_of(stack.summary.cls_row, -1)
            if index == len(self._keys):
                self._keys.append(stack.keys)
                self._sums.append(torch.zeros_like(maps_NBHP[:, 0]))
                self._squares.append(torch.zeros_like(maps_NBHP[:, 0]))
            self._sums[index] += maps_NBHP.sum(1)
            self._squares[index] += maps_NBHP.square().sum(1)

    def merge(self, other: PerImageMetric) -> None:
        """Add the images of another instance."""
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
        """Return the mean map and its spread over images."""
        if len(self._keys) != 1:
            return {}
        mean = self._sums[0].cpu().double().numpy() / self._count
        square = self._squares[0].cpu().double().numpy() / self._count
        few = np.nan if self._count < 2 else self._count / (self._count - 1)
        variance = np.maximum(square - mean**2, 0) * few
        dims = ("block", "head", "row", "column")
        arrays = {}
        for part, values in (("mean", mean), ("sd", np.sqrt(variance))):
            ordered = by_block(self._keys[0], values, PATTERN)
            assert ordered is not None
            arrays[part] = NamedArray(ordered.reshape(*ordered.shape[:2], *self.layout.grid), dims, "attention")
        return arrays
