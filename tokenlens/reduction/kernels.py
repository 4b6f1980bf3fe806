"""Reductions of activations in torch operations, on any device and in any precision."""

# Shapes: B images, T tokens, P patches, R prefix tokens, K sums over patches, S stages of a norm, D channels, H heads,
# d channels per head.

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenlens.families import NormParameters
from tokenlens.recording.attention import AttentionCall, as_float, dots
from tokenlens.tokens import TokenLayout


def weighted_sums(weights: Tensor, x: Tensor, out: Tensor) -> None:
    """Compute Σ_i w_ki·x_i for K sets of weights (..., K, T) and tokens (..., T, D), into ``out`` (..., K, D)."""
    if torch.get_float32_matmul_precision() == "highest":
        torch.matmul(weights, x, out=out)
        return
    # The user allows matrix products in TF32 or bfloat16, which would round these sums.
    for k, row in enumerate(weights.unbind(-2)):
        torch.sum(row.unsqueeze(-1) * x, dim=-2, out=out.select(-2, k))


def compute_statistics(x_BTD: Tensor, parameters: NormParameters, mean_BT: Tensor | None, rstd_BT: Tensor) -> None:
    """Compute what a norm computes of each token: its mean, None for RMSNorm, and 1/σ with ε in it."""
    x_BTD = as_float(x_BTD)
    if mean_BT is not None:
        torch.mean(x_BTD, dim=-1, out=mean_BT)
        x_BTD = x_BTD - mean_BT.unsqueeze(-1)
    variance_BT = torch.linalg.vector_norm(x_BTD, dim=-1).square_().div_(x_BTD.shape[-1])
    torch.rsqrt(variance_BT.add_(parameters.eps), out=rstd_BT)


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


class TokenOutputs(NamedTuple):
    """Outputs of the reductions of tokens (B, T, D) or (B, H, T, d), each None if it is not wanted.

    Attributes:
        norms: (..., T), Euclidean norm of every token.
        rows: (..., R + K, D), the prefix tokens, then K sums over patches; only together with ``norms``.
        magnitudes: (B, D), Σ_i |x_i| over patches.
    """

    norms: Tensor | None = None
    rows: Tensor | None = None
    magnitudes: Tensor | None = None


class ReductionKernels:
    """The reductions of one model's activations, between ``start`` and ``end`` of a forward pass.

    Methods write into the tensors that they are given and skip the reductions whose tensor is None. Activations come in
    the model's own precision; outputs are float32, or float64 for a model in float64.
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
        x = as_float(x)
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
            torch.linalg.vecdot(x, as_float(other), out=products)

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
        x_BTD: Tensor,
        y_BTD: Tensor,
        parameters: NormParameters,
        mean_BT: Tensor | None,
        rstd_BT: Tensor,
        lengths_BSP: Tensor,
        sums_BSD: Tensor,
        sums: tuple[str, ...],
        before: TokenOutputs,
        after: TokenOutputs,
    ) -> None:
        """Reduce a norm: its input and output as ``reduce_tokens`` does, and the patches after each of its stages.

        Args:
            x_BTD: input.
            y_BTD: output.
            parameters: the parameters of the norm.
            mean_BT: mean of every token; None for RMSNorm, which subtracts none.
            rstd_BT: 1/σ of every token, with ε in it.
            lengths_BSP: ‖x_i − μ_i‖ and, if the norm has a γ, ‖γ⊙(x_i − μ_i)‖.
            sums_BSD: Σ_i (x_i − μ_i) divided by each of these lengths; γ is still to be applied to the second.
            sums: as in ``reduce_tokens``.
            before: reductions of the input; None where it was reduced before.
            after: reductions of the output.
        """
        self.reduce_tokens(y_BTD, sums, *after)
        self.reduce_tokens(x_BTD, sums, *before)
        patches_BPD = as_float(self.layout.patches_of(x_BTD))
        centred_BPD = patches_BPD
        if mean_BT is not None:
            # Subtract, then square: E[x²] − μ² cancels where |μ| ≫ σ.
            means_BP1, scratch_BPD = (
                self.layout.patches_of(mean_BT, -1).unsqueeze(-1),
                self._workspace.like(patches_BPD),
            )
            centred_BPD = torch.sub(patches_BPD, means_BP1, out=scratch_BPD)
        torch.linalg.vector_norm(centred_BPD, dim=-1, out=lengths_BSP.select(-2, 0))
        if parameters.weight_patch is not None:
            weight_D = parameters.weight_patch.to(centred_BPD.dtype)
            weighted_BPD = torch.mul(centred_BPD, weight_D, out=self._workspace.like(centred_BPD, 1))
            torch.linalg.vector_norm(weighted_BPD, dim=-1, out=lengths_BSP.select(-2, 1))
        weighted_sums(lengths_BSP.reciprocal(), centred_BPD, sums_BSD)

    def reduce_attention(self, call: AttentionCall, row_BHT: Tensor | None, columns_BHR: Tensor | None) -> None:
        """Reduce one attention call.

        Args:
            call: the call.
            row_BHT: attention of CLS to every token.
            columns_BHR: mean over patches of their attention to each prefix token.
        """

        def dots_in_workspace(x_BHTd: Tensor, y_BH1d: Tensor) -> Tensor:
            return dots(x_BHTd, y_BH1d, self._workspace.like(x_BHTd))

        if row_BHT is not None:
            row_BHT.copy_(call.rows(self.layout.positions("cls"), dots_in_workspace).squeeze(-2))
        if columns_BHR is not None:
            columns_BHTR = call.columns(self.layout.prefix_positions, dots_in_workspace)
            torch.mean(self.layout.patches_of(columns_BHTR), dim=-2, out=columns_BHR)
