"""What is kept of a tensor when its hook ends: a few sums over its tokens, from which the metrics are computed.

The metrics see the summaries of all cells of one kind at once, with a first axis of cells, so that they cost a few
operations a batch and not a few operations a site. ``tokenlens.reduction.reducer`` takes the sums.
"""

# Shapes: N cells (block, site), B images, T tokens, P patches, R prefix tokens, D channels, H heads, d channels a head.
# "..." stands for (N, B), and for (N, B, H) at q, k and v.

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tokenlens.tokens import TokenLayout, take

Reduction = Literal["unit_patch_sum", "patch_sum", "patch_abs_sum"]
"""Sums over patches that a metric can ask for; the prefix tokens and every token's norm are always kept."""

PatternReduction = Literal["rollout", "patch_distance"]
"""What a metric can ask for of the whole pattern, which costs."""


def precise(x: Tensor) -> Tensor:
    """``x`` in float64, or in float32 on devices that have no float64."""
    return x.float() if x.device.type == "mps" else x.double()


@dataclass
class TokenSummary:
    """Of the tokens at one site: the prefix tokens, every token's norm, and sums over the patches.

    Attributes:
        rows: (..., R + K, D), the R prefix tokens themselves in layout order, then K sums over patches.
        sums: what the K sums are.
        norms: (..., T), Euclidean norm of every token.
        patch_abs_sum: (..., D), Σ_i |x_i| over patches; None if it was not wanted.
    """

    layout: TokenLayout
    rows: Tensor
    sums: tuple[str, ...]
    norms: Tensor
    patch_abs_sum: Tensor | None = None

    @cached_property
    def prefix(self) -> Tensor:
        """The prefix tokens, (..., R, D)."""
        return self.rows.narrow(-2, 0, len(self.layout.prefix))

    def _sum(self, name: Reduction) -> Tensor | None:
        if name not in self.sums:
            return None
        return self.rows.select(-2, len(self.layout.prefix) + self.sums.index(name))

    @property
    def unit_patch_sum(self) -> Tensor | None:
        """Σ_i x_i/‖x_i‖ over patches, (..., D); None if it was not wanted."""
        return self._sum("unit_patch_sum")

    @property
    def patch_sum(self) -> Tensor | None:
        """Σ_i x_i over patches, (..., D); None if it was not wanted."""
        return self._sum("patch_sum")

    @property
    def patches(self) -> int:
        """Number of patch tokens."""
        return self.layout.patches

    def group(self, group: str) -> Tensor:
        """The tokens of a prefix group, (..., R_group, D)."""
        return take(self.prefix, self.layout.prefix_index(group), -2)

    def unit_group(self, group: str) -> Tensor:
        """The same, each divided by its norm."""
        return take(self.unit_prefix, self.layout.prefix_index(group), -2)

    @cached_property
    def unit_prefix(self) -> Tensor:
        """All prefix tokens divided by their norms, (..., R, D)."""
        return self.prefix / torch.linalg.vector_norm(self.prefix, dim=-1, keepdim=True)

    def norms_of(self, group: str) -> Tensor:
        """Norms of one group's tokens, (..., tokens of the group)."""
        if group == "patch":
            return self.layout.patches_of(self.norms, -1)
        return take(self.norms, self.layout.positions(group), -1)


@dataclass
class NormSummary:
    """Of one norm: its tokens before and after, what it computes per token, and the stages between.

    Attributes:
        kind: ``"layer"`` or ``"rms"``.
        has_bias: whether it has a β.
        input, output: the tokens before and after.
        patch_mean: (..., P), the mean that a LayerNorm subtracts; None for RMSNorm.
        patch_lengths: (..., S, P), ‖x_i − μ_i‖ and, if the norm has a γ, ‖γ⊙(x_i − μ_i)‖.
        stage_sums: (..., S, D), Σ_i (x_i − μ_i) over each of these lengths.
        weight_prefix, weight_patch: (N, 1, D), γ for prefix tokens and patches; None if the norm has none.
        bias_prefix, bias_patch: (N, 1, D), β likewise.
        eps: (N,), what is added to the variance.
        specialized: for each of the N whether it holds two sets of weights.
    """

    kind: str
    has_bias: bool
    input: TokenSummary
    output: TokenSummary
    patch_mean: Tensor | None
    patch_lengths: Tensor
    stage_sums: Tensor
    weight_prefix: Tensor | None
    weight_patch: Tensor | None
    bias_prefix: Tensor | None
    bias_patch: Tensor | None
    eps: Tensor
    specialized: tuple[bool, ...]

    @property
    def layout(self) -> TokenLayout:
        """The token layout."""
        return self.input.layout

    @cached_property
    def patch_variance(self) -> Tensor:
        """(..., P), the variance that it divides by the root of (mean square for RMSNorm), without ε."""
        return self.patch_lengths.select(-2, 0).square() / self.stage_sums.shape[-1]

    @property
    def centred_patch_sum(self) -> Tensor:
        """(..., D), Σ_i of the unit vectors of x_i − μ_i."""
        return self.stage_sums.select(-2, 0)

    @cached_property
    def weighted_patch_sum(self) -> Tensor:
        """(..., D), Σ_i of the unit vectors of γ⊙(x_i − μ_i); γ is the same for all patches."""
        if self.weight_patch is None:
            return self.centred_patch_sum
        return self.stage_sums.select(-2, 1) * self.weight_patch

    @cached_property
    def centred_prefix(self) -> Tensor:
        """Prefix tokens minus their mean (RMSNorm: as they are), (..., R, D)."""
        prefix = self.input.prefix
        return prefix - prefix.mean(-1, keepdim=True) if self.kind == "layer" else prefix

    @cached_property
    def weighted_prefix(self) -> Tensor:
        """γ⊙(x − μ) of the prefix tokens, (..., R, D)."""
        if self.weight_prefix is None:
            return self.centred_prefix
        return self.centred_prefix * self.weight_prefix.unsqueeze(-2)


@dataclass
class AttentionSummary:
    """Of one block's attention.

    Attributes:
        cls_row: (..., H, T), how CLS attends to every token; None without CLS.
        patch_to_prefix: (..., H, R), how patches attend to each prefix token, mean over patches; None without prefix.
    """

    layout: TokenLayout
    cls_row: Tensor | None
    patch_to_prefix: Tensor | None


@dataclass
class PatternSummary:
    """Of one block's whole pattern.

    Attributes:
        cls_rollout: (..., T), the CLS row of the rollout up to and with this block; None if it was not wanted.
        patch_distance: (..., H), mean over patches of their ``attention_distances``, in patches; None if it was not
            wanted.
    """

    layout: TokenLayout
    cls_rollout: Tensor | None
    patch_distance: Tensor | None


@dataclass
class UpdateSummary:
    """Of what a branch adds to the residual.

    Attributes:
        product: (..., T), inner product of update and residual, token by token.
        update_norms, residual_norms: (..., T).
    """

    layout: TokenLayout
    product: Tensor
    update_norms: Tensor
    residual_norms: Tensor


Kind = type[TokenSummary] | type[NormSummary] | type[AttentionSummary] | type[PatternSummary] | type[UpdateSummary]
