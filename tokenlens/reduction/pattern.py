"""What takes every row of the attention pattern: rollout and distances, from a block of rows at a time."""

# Shapes: B images, H heads, T tokens, P patches, R chosen rows.

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from tokenlens.recording.attention import AttentionCall, exact
from tokenlens.reduction.summaries import PatternReduction
from tokenlens.tokens import TokenLayout


def rollout_rows(pattern_BHRT: Tensor, rows: slice, before_BTT: Tensor | None) -> Tensor:
    """Some rows of the rollout R_l = Ã_l·R_{l−1} with Ã = ½·(mean of A over heads) + ½·I, (B, R, T); they sum to 1.

    Args:
        pattern_BHRT: these rows of the block's pattern A.
        rows: which ones they are.
        before_BTT: the rollout R_{l−1} of the blocks before; None for the identity, before the first block.
    """
    mean_BRT = exact(pattern_BHRT.mean(1))
    if before_BTT is None:
        rollout_BRT = mean_BRT / 2
        rollout_BRT.diagonal(offset=rows.start, dim1=-2, dim2=-1).add_(0.5)
        return rollout_BRT
    return torch.baddbmm(before_BTT[:, rows], mean_BRT, before_BTT, beta=0.5, alpha=0.5)


def grid_distances(rows: int, columns: int) -> Tensor:
    """Euclidean distances between the patches' centres in patches, (P, P), patches in row-major order.

    >>> grid_distances(1, 3)
    tensor([[0., 1., 2.],
            [1., 0., 1.],
            [2., 1., 0.]], dtype=torch.float64)
    """
    axes = (torch.arange(count, dtype=torch.float64) for count in (rows, columns))
    row_P, column_P = (x.flatten() for x in torch.meshgrid(*axes, indexing="ij"))
    return torch.hypot(row_P[:, None] - row_P, column_P[:, None] - column_P)


def attention_distances(pattern_BHRP: Tensor, distances_RP: Tensor) -> Tensor:
    """Mean distance of each query to the patches, weighted by its attention to them made to sum to 1: (B, H, R).

    NaN for a query that pays no attention to patches at all.
    """
    return (pattern_BHRP * distances_RP).sum(-1) / pattern_BHRP.sum(-1)


class WholePattern:
    """Sees the pattern of block after block of one forward pass and holds the rollout in between.

    Args:
        layout: the model's tokens.
        wanted: what is taken of the pattern.
    """

    def __init__(self, layout: TokenLayout, wanted: Collection[PatternReduction]) -> None:
        self.layout = layout
        self.wanted = wanted
        self._next_block = 0
        self._rollouts: list[Tensor] = []
        self._distances_PP: Tensor | None = None

    def start(self) -> None:
        """Begin a new forward pass."""
        self._next_block = 0

    def end(self) -> None:
        """End it: matrices of T×T are not held between passes."""
        self._rollouts, self._distances_PP = [], None

    def reduce(self, block: int, call: AttentionCall) -> tuple[Tensor | None, Tensor | None]:
        """One pass over the rows of a block's pattern: the CLS row of the rollout (B, T), valid until the next but one
        block, and the patches' distances (B, H); None for what is not wanted.

        Raises:
            ValueError: if rollout is wanted and the blocks do not come in their order.
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
        cls_rollout = None
        if "rollout" in self.wanted:
            cls_rollout = self._rollouts[block % 2][:, self.layout.positions("cls")[0]].to(pattern_BHRT.dtype)
        return cls_rollout, torch.cat(distances, dim=-1).nanmean(-1) if distances else None

    def _roll_out(self, block: int, rows: slice, pattern_BHRT: Tensor) -> None:
        """Put some rows of this block's rollout in their place, in one of two (B, T, T) that take turns."""
        before_BTT = self._rollouts[1 - block % 2] if block else None
        rollout_BRT = rollout_rows(pattern_BHRT, rows, before_BTT)
        shape = (len(rollout_BRT), self.layout.tokens, self.layout.tokens)
        if not self._rollouts or (self._rollouts[0].shape, self._rollouts[0].dtype) != (shape, rollout_BRT.dtype):
            self._rollouts = [rollout_BRT.new_empty(shape), rollout_BRT.new_empty(shape)]
        self._rollouts[block % 2][:, rows] = rollout_BRT

    def _distances(self, rows: slice, pattern_BHRT: Tensor) -> Tensor:
        """How far the patches among some rows look, (B, H, patches among them)."""
        if self._distances_PP is None:
            # In two steps: not every device has float64.
            self._distances_PP = grid_distances(*self.layout.grid).to(pattern_BHRT.dtype).to(pattern_BHRT.device)
        first = self.layout.patch_slice.start
        start, stop = (min(max(row - first, 0), self.layout.patches) for row in (rows.start, rows.stop))
        offset = first - rows.start
        pattern_BHRP = self.layout.patches_of(pattern_BHRT[..., start + offset : stop + offset, :], -1)
        return attention_distances(pattern_BHRP, self._distances_PP[start:stop])
