"""Reductions of the whole attention pattern, a block of rows at a time: attention rollout and attention distance."""

# Shapes: B images, H heads, T tokens, P patches, R rows of the pattern.

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from tokenlens.recording.attention import AttentionCall, as_float, avoid_tf32
from tokenlens.reduction.summaries import PatternReduction
from tokenlens.tokens import TokenLayout


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


def grid_distances(rows: int, columns: int) -> Tensor:
    """Compute the Euclidean distances between patch centres, in patches, (P, P), in row-major order.

    >>> grid_distances(1, 3)
    tensor([[0., 1., 2.],
            [1., 0., 1.],
            [2., 1., 0.]], dtype=torch.float64)
    """
    axes = (torch.arange(count, dtype=torch.float64) for count in (rows, columns))
    row_P, column_P = (x.flatten() for x in torch.meshgrid(*axes, indexing="ij"))
    return torch.hypot(row_P[:, None] - row_P, column_P[:, None] - column_P)


def attention_distances(pattern_BHRP: Tensor, distances_RP: Tensor) -> Tensor:
    """Compute each query's mean distance to the patches, weighted by its attention to them, (B, H, R).

    The weights are normalized to sum to 1. NaN for a query without any attention to patches.
    """
    return (pattern_BHRP * distances_RP).sum(-1) / pattern_BHRP.sum(-1)


def sum_values(layout: TokenLayout, row_BHT: Tensor, v_BHTd: Tensor) -> Tensor:
    """Compute Σ_j a_j·v_j over the tokens of each group, in the order of the layout's groups, (B, H, groups, d)."""
    weights_BHGT = row_BHT.unsqueeze(-2).repeat(1, 1, len(layout.groups), 1)
    for index, group in enumerate(layout.groups):
        others = torch.ones(layout.tokens, dtype=torch.bool, device=row_BHT.device)
        others[list(layout.positions(group))] = False
        weights_BHGT[..., index, :].masked_fill_(others, 0)
    v_BHTd = as_float(v_BHTd)
    return (avoid_tf32(weights_BHGT.to(v_BHTd.dtype)) @ avoid_tf32(v_BHTd)).to(v_BHTd.dtype)


class WholePattern:
    """Reduces the whole pattern of one block after the other, and keeps the rollout from block to block.

    Args:
        layout: the model's tokens.
        wanted: the reductions to compute.
    """

    def __init__(self, layout: TokenLayout, wanted: Collection[PatternReduction]) -> None:
        self.layout = layout
        self.wanted = wanted
        self._next_block = 0
        self._rollouts: list[Tensor] = []
        self._distances_PP: Tensor | None = None

    def start(self) -> None:
        """Begin a forward pass."""
        self._next_block = 0

    def end(self) -> None:
        """End a forward pass; matrices of T×T are not kept between passes."""
        self._rollouts, self._distances_PP = [], None

    def reduce(self, block: int, call: AttentionCall) -> dict[str, Tensor]:
        """Compute the wanted ones of ``cls_rollout`` (B, T) and ``patch_distance`` (B, H) in one pass over the rows.

        Raises:
            ValueError: if rollout is wanted and the blocks do not arrive in order.
        """
        if "rollout" in self.wanted and block != self._next_block:
            raise ValueError(
                "attention rollout multiplies the blocks in the order in which they run, which is the order of the "
                f"family's blocks(): expected block {self._next_block}, got block {block}"
            )
        self._next_block = block + 1
        distances: list[Tensor] = []
        for rows, pattern_BHRT in call.row_blocks():
            if "rollout" in self.wanted:
                self._roll_out(block, rows, pattern_BHRT)
            if "patch_distance" in self.wanted:
                distances.append(self._distances(rows, pattern_BHRT))
        reduced = {}
        if "rollout" in self.wanted:
            reduced["cls_rollout"] = self.layout.mean_of(self._rollouts[block % 2], "cls").to(pattern_BHRT.dtype)
        if distances:
            reduced["patch_distance"] = torch.cat(distances, dim=-1).nanmean(-1)
        return reduced

    def _roll_out(self, block: int, rows: slice, pattern_BHRT: Tensor) -> None:
        """Compute rows of this block's rollout, in one of two (B, T, T) matrices that are used in turn."""
        before_BTT = self._rollouts[1 - block % 2] if block else None
        rollout_BRT = rollout_rows(pattern_BHRT, rows, before_BTT)
        shape = (len(rollout_BRT), self.layout.tokens, self.layout.tokens)
        if not self._rollouts or (self._rollouts[0].shape, self._rollouts[0].dtype) != (shape, rollout_BRT.dtype):
            self._rollouts = [rollout_BRT.new_empty(shape), rollout_BRT.new_empty(shape)]
        self._rollouts[block % 2][:, rows] = rollout_BRT

    def _distances(self, rows: slice, pattern_BHRT: Tensor) -> Tensor:
        """Compute the attention distances of the patches among these rows, (B, H, patches among them)."""
        if self._distances_PP is None:
            # In two steps: not every device has float64.
            self._distances_PP = grid_distances(*self.layout.grid).to(pattern_BHRT.dtype).to(pattern_BHRT.device)
        first = self.layout.patch_slice.start
        start, stop = (min(max(row - first, 0), self.layout.patches) for row in (rows.start, rows.stop))
        offset = first - rows.start
        pattern_BHRP = self.layout.patches_of(pattern_BHRT[..., start + offset : stop + offset, :], -1)
        return attention_distances(pattern_BHRP, self._distances_PP[start:stop])
