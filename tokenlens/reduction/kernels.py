"""Reductions of activations in torch operations, on any device and in any precision."""

# Shapes: B images, T tokens, P patches, R prefix tokens, K sums over patches, S stages of a norm, D channels, H heads,
# d channels per head.

from __future__ import annotations

import torch
from torch import Tensor

from tokenlens.recording.attention import AttentionCall, dots
from tokenlens.tokens import TokenLayout


def weighted_sums(weights: Tensor, x: Tensor, out: Tensor) -> None:
    """Compute Σ_i w_ki·x_i for K sets of weights (..., K, T) and tokens (..., T, D), into ``out`` (..., K, D)."""
    if torch.get_float32_matmul_precision() == "highest":
        torch.matmul(weights, x, out=out)
        return
    # The user allows matrix products in TF32 or bfloat16, which would round these sums.
    for k, row in enumerate(weights.unbind(-2)):
        torch.sum(row.unsqueeze(-1) * x, dim=-2, out=out.select(-2, k))


class Workspace:
    """Scratch tensors of the size of one site's tokens, allocated once per forward pass.

    Like ``Buffers`` they exist before the pass: newly allocated memory would first have to be fetched into the cache.
    """

    def __init__(self) -> None:
        self._shapes: dict[tuple[int, tuple[int, ...], torch.dtype, torch.device], None] = {}
        self._tensors: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def start(self, images: int) -> None:
        """Allocate what the previous pass used."""
        for slot, tail, dtype, device in self._shapes:
            self._tensors[slot, tail] = torch.empty((images, *tail), dtype=dtype, device=device)

    def end(self) -> None:
        """Free all tensors."""
        self._tensors.clear()

    def like(self, x: Tensor, slot: int = 0) -> Tensor:
        """Return an uninitialized contiguous tensor like ``x``, a different one for each ``slot``."""
        tail = tuple(x.shape[1:])
        found = self._tensors.get((slot, tail))
        if found is None or found.dtype != x.dtype or len(found) != len(x):
            self._shapes[slot, tail, x.dtype, x.device] = None
            found = self._tensors[slot, tail] = x.new_empty(x.shape)
        return found


class ReductionKernels:
    """The reductions of one model's activations, between ``start`` and ``end`` of a forward pass.

    Methods write into the tensors that they are given and skip the reductions whose tensor is None.
    """

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout
        self._workspace = Workspace()
        self._weights: dict[tuple[object, ...], tuple[Tensor, Tensor | None]] = {}

    def start(self, images: int) -> None:
        """Begin a forward pass of ``images`` images."""
        self._workspace.start(images)

    def end(self) -> None:
        """End a forward pass and free the scratch memory."""
        self._workspace.end()

    def reduce_tokens(
        self,
        x: Tensor,
        sums: tuple[str, ...] = (),
        norms: Tensor | None = None,
        rows: Tensor | None = None,
        magnitudes: Tensor | None = None,
        other: Tensor | None = None,
        products: Tensor | None = None,
    ) -> None:
        """Reduce tokens (B, T, D) or (B, H, T, d).

        Args:
            x: the tokens.
            sums: the sums in ``rows``: ``"unit_patch_sum"``, Σ_i x_i/‖x_i‖ over patches, and ``"patch_sum"``, Σ_i x_i.
            norms: (..., T), Euclidean norm of every token.
            rows: (..., R + K, D), the prefix tokens, then the sums; only together with ``norms``.
            magnitudes: (B, D), Σ_i |x_i| over patches.
            other: tokens of the same shape.
            products: (B, T), inner product with ``other`` for each token.
        """
        if norms is not None and rows is not None:
            torch.linalg.vector_norm(x, dim=-1, out=norms)
            weights, unit = self._row_weights(x, sums)
            if unit is not None:
                torch.reciprocal(self.layout.patches_of(norms, -1), out=unit)
            weighted_sums(weights, x, rows)
        if magnitudes is not None:
            patches_BPD = self.layout.patches_of(x)
            absolute_BPD = torch.abs(patches_BPD, out=self._workspace.like(patches_BPD))
            torch.sum(absolute_BPD, dim=-2, out=magnitudes)
        if other is not None and products is not None:
            torch.linalg.vecdot(x, other, out=products)

    def _row_weights(self, x: Tensor, sums: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
        """Return weights (..., R + K, T) that select prefix tokens and sum patches, and their part to set to 1/norm.

        A row that selects a token gives exactly that token, since it adds 0·x of all others.
        """
        key = (x.shape[:-1], sums, x.dtype, x.device)
        if key not in self._weights:
            layout = self.layout
            weights = x.new_zeros((*x.shape[:-2], len(layout.prefix) + len(sums), x.shape[-2]))
            for row, position in enumerate(layout.prefix_positions):
                weights[..., row, position] = 1.0
            patches = layout.patches_of(weights, -1)
            patches[..., len(layout.prefix) :, :] = 1.0
            unit = patches.select(-2, len(layout.prefix)) if "unit_patch_sum" in sums else None
            self._weights[key] = (weights, unit)
        return self._weights[key]

    def reduce_norm(
        self,
        patches_BPD: Tensor,
        weight_D: Tensor | None,
        means_BP: Tensor | None,
        lengths_BSP: Tensor,
        sums_BSD: Tensor,
    ) -> None:
        """Reduce the input of a norm to the statistics of each patch and the sums after each stage of the norm.

        Args:
            patches_BPD: the patches of the input.
            weight_D: the norm's γ in the precision of the input; None for a norm with one stage, without γ.
            means_BP: the mean that is subtracted; None for RMSNorm.
            lengths_BSP: ‖x_i − μ_i‖ and ‖γ⊙(x_i − μ_i)‖.
            sums_BSD: Σ_i (x_i − μ_i) divided by each of these lengths; γ is still to be applied to the second.
        """
        centred_BPD = patches_BPD
        if means_BP is not None:
            torch.mean(patches_BPD, dim=-1, out=means_BP)
            # Subtract, then square: E[x²] − μ² cancels where |μ| ≫ σ. torch.var is 20 times slower on CPU.
            scratch = self._workspace.like(patches_BPD)
            centred_BPD = torch.sub(patches_BPD, means_BP.unsqueeze(-1), out=scratch)
        torch.linalg.vector_norm(centred_BPD, dim=-1, out=lengths_BSP.select(-2, 0))
        if weight_D is not None:
            weighted_BPD = torch.mul(centred_BPD, weight_D, out=self._workspace.like(centred_BPD, 1))
            torch.linalg.vector_norm(weighted_BPD, dim=-1, out=lengths_BSP.select(-2, 1))
        weighted_sums(lengths_BSP.reciprocal(), centred_BPD, sums_BSD)

    def reduce_attention(self, call: AttentionCall, row_BHT: Tensor | None, columns_BHR: Tensor | None) -> None:
        """Reduce one attention call.

        Args:
            call: the call.
            row_BHT: attention of CLS to every token, mean over the class tokens.
            columns_BHR: mean over patches of their attention to each prefix token.
        """

        def dots_in_workspace(x_BHTd: Tensor, y_BH1d: Tensor) -> Tensor:
            return dots(x_BHTd, y_BH1d, self._workspace.like(x_BHTd))

        if row_BHT is not None:
            row_BHT.copy_(call.rows(self.layout.positions("cls"), dots_in_workspace).mean(-2))
        if columns_BHR is not None:
            columns_BHTR = call.columns(self.layout.prefix_positions, dots_in_workspace)
            torch.mean(self.layout.patches_of(columns_BHTR), dim=-2, out=columns_BHR)
