"""Reductions of activations in torch operations, on any device and in any precision."""

# Shapes: B images, T tokens, P patches, R prefix tokens, K sums over patches, S stages of a norm, D channels, H heads,
# d channels per head.

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenlens.families import NormParameters
from tokenlens.recording.attention import AttentionCall, as_float
from tokenlens.tokens import TokenLayout


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


def weighted_sums(weights: Tensor, x: Tensor, out: Tensor) -> None:
    """Compute Σ_i w_ki·x_i for K sets of weights (..., K, T) and tokens (..., T, D), into ``out`` (..., K, D)."""
    if torch.get_float32_matmul_precision() == "highest":
        torch.matmul(weights, x, out=out)
        return
    # The user allows matrix products in TF32 or bfloat16, which would round these sums.
    for k, row in enumerate(weights.unbind(-2)):
        torch.sum(row.unsqueeze(-1) * x, dim=-2, out=out.select(-2, k))


def compute_statistics(x_BTD: Tensor, eps: float, mean_BT: Tensor | None, rstd_BT: Tensor) -> None:
    """Compute what a norm computes of each token: its mean, None for RMSNorm, and 1/σ with ε in it."""
    x_BTD = as_float(x_BTD)
    if mean_BT is not None:
        torch.mean(x_BTD, dim=-1, out=mean_BT)
        x_BTD = x_BTD - mean_BT.unsqueeze(-1)
    variance_BT = torch.linalg.vector_norm(x_BTD, dim=-1).square_().div_(x_BTD.shape[-1])
    torch.rsqrt(variance_BT.add_(eps), out=rstd_BT)


class ReductionKernels:
    """The reductions of one model's activations.

    Methods write into the tensors that they are given and skip the reductions whose tensor is None. Activations come in
    the model's own precision; outputs are float32, or float64 for a model in float64.
    """

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout
        self._weights: dict[tuple[object, ...], Tensor] = {}

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
            weighted_sums(self._row_weights(x, sums, norms), x, rows)
        if magnitudes is not None:
            torch.sum(self.layout.patches_of(x).abs(), dim=-2, out=magnitudes)
        if other is not None and products is not None:
            torch.linalg.vecdot(x, as_float(other), out=products)

    def _row_weights(self, x: Tensor, sums: tuple[str, ...], norms: Tensor | None, stages: int = 0) -> Tensor:
        """Return weights (..., R + K + S, T): prefix tokens, sums of patches, and S rows that are still to be set.

        A row that selects a token gives exactly that token, since it adds 0·x of all others.
        """
        key = (x.shape[:-1], sums, stages, x.dtype, x.device)
        prefixes = len(self.layout.prefix)
        if key not in self._weights:
            weights = x.new_zeros((*x.shape[:-2], prefixes + len(sums) + stages, x.shape[-2]))
            for row, position in enumerate(self.layout.prefix_positions):
                weights[..., row, position] = 1.0
            self.layout.patches_of(weights, -1)[..., prefixes:, :] = 1.0
            self._weights[key] = weights
        weights = self._weights[key]
        if norms is not None and "unit_patch_sum" in sums:
            unit = self.layout.patches_of(weights, -1).select(-2, prefixes)
            torch.reciprocal(self.layout.patches_of(norms, -1), out=unit)
        return weights

    def reduce_norm(
        self,
        x_BTD: Tensor,
        y_BTD: Tensor,
        parameters: NormParameters,
        mean_BT: Tensor | None,
        rstd_BT: Tensor | None,
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
            rstd_BT: 1/σ of every token, with ε in it, from the norm's kernel; None if it did not report it.
            lengths_BSP: ‖x_i − μ_i‖ and, if the norm has a γ, ‖γ⊙(x_i − μ_i)‖.
            sums_BSD: Σ_i (x_i − μ_i) divided by each of these lengths; γ is still to be applied to the second.
            sums: as in ``reduce_tokens``.
            before: reductions of the input; None where it was reduced before.
            after: reductions of the output.
        """
        self.reduce_tokens(y_BTD, sums, *after)
        patches_of = self.layout.patches_of
        if (
            rstd_BT is not None
            and after.norms is not None
            and x_BTD.device.type == "cpu"
            and x_BTD.dtype == y_BTD.dtype == lengths_BSP.dtype
            and self._lengths_from_output(y_BTD, parameters, mean_BT, rstd_BT, lengths_BSP, before.norms, after.norms)
        ):
            means_BP = None if mean_BT is None else patches_of(mean_BT, -1)
            self._sum_stages(x_BTD, means_BP, lengths_BSP, sums_BSD, sums, before)
            self.reduce_tokens(x_BTD, magnitudes=before.magnitudes)
            return
        self.reduce_tokens(x_BTD, sums, *before)
        centred_BPD = as_float(patches_of(x_BTD))
        if mean_BT is not None:
            # Subtract, then square: E[x²] − μ² cancels where |μ| ≫ σ.
            centred_BPD = centred_BPD - patches_of(mean_BT, -1).unsqueeze(-1)
        torch.linalg.vector_norm(centred_BPD, dim=-1, out=lengths_BSP.select(-2, 0))
        if parameters.weight_patch is not None:
            weighted_BPD = centred_BPD * parameters.weight_patch.to(centred_BPD.dtype)
            torch.linalg.vector_norm(weighted_BPD, dim=-1, out=lengths_BSP.select(-2, 1))
        weighted_sums(lengths_BSP.reciprocal(), centred_BPD, sums_BSD)

    def _lengths_from_output(
        self,
        y_BTD: Tensor,
        parameters: NormParameters,
        mean_BT: Tensor | None,
        rstd_BT: Tensor,
        lengths_BSP: Tensor,
        before_BT: Tensor | None,
        after_BT: Tensor,
    ) -> bool:
        """Compute the lengths after each stage, and ‖x‖, without the input; return False where that loses digits.

        With v = 1/rstd² − ε: ‖x‖² = D·(v + μ²), ‖x − μ‖² = D·v and ‖γ⊙(x − μ)‖ = ‖y − β‖/rstd. Only on the CPU, where
        looking at numbers does not wait for a device.
        """
        patches_of, channels = self.layout.patches_of, y_BTD.shape[-1]
        variance_BT = rstd_BT.pow(-2).sub_(parameters.eps)
        squares_BT = variance_BT if mean_BT is None else variance_BT + mean_BT.square()
        # ε that is large beside v loses digits of it, and a mean that is large beside σ those of centred sums.
        safe = bool(((squares_BT + parameters.eps) / variance_BT).amax() <= 17)  # False for NaN, too
        if not safe:
            return False
        if before_BT is not None:
            torch.sqrt(squares_BT * channels, out=before_BT)
        torch.sqrt(patches_of(variance_BT, -1) * channels, out=lengths_BSP.select(-2, 0))
        if parameters.weight_patch is None:
            return True
        lengths_BP, norms_BP = lengths_BSP.select(-2, 1), patches_of(after_BT, -1)
        if parameters.bias_patch is not None:
            bias_D = parameters.bias_patch
            squares_BP = norms_BP.square() - 2 * torch.linalg.vecdot(patches_of(y_BTD), bias_D) + bias_D.dot(bias_D)
            # Digits cancel where y is much longer than y − β.
            if not bool((norms_BP.square() / squares_BP).amax() <= 30):
                return False
            norms_BP = squares_BP.sqrt_()
        torch.div(norms_BP, patches_of(rstd_BT, -1), out=lengths_BP)
        return True

    def _sum_stages(
        self,
        x_BTD: Tensor,
        means_BP: Tensor | None,
        lengths_BSP: Tensor,
        sums_BSD: Tensor,
        sums: tuple[str, ...],
        before: TokenOutputs,
    ) -> None:
        """Compute Σ_i (x_i − μ_i)/length_i = Σ_i x_i/length_i − Σ_i μ_i/length_i, in one product with the rows of x."""
        stages = lengths_BSP.shape[-2]
        weights = self._row_weights(x_BTD, sums, before.norms, stages)
        inverse_BSP = torch.reciprocal(lengths_BSP, out=self.layout.patches_of(weights, -1)[..., -stages:, :])
        if before.rows is None:
            weighted_sums(weights[..., -stages:, :], x_BTD, sums_BSD)
        else:
            all_BKD = x_BTD.new_empty((len(x_BTD), weights.shape[-2], x_BTD.shape[-1]))
            weighted_sums(weights, x_BTD, all_BKD)
            before.rows.copy_(all_BKD[..., :-stages, :])
            sums_BSD.copy_(all_BKD[..., -stages:, :])
        if means_BP is not None:
            sums_BSD.sub_(torch.linalg.vecdot(inverse_BSP, means_BP.unsqueeze(-2)).unsqueeze(-1))

    def reduce_attention(self, call: AttentionCall, row_BHT: Tensor | None, columns_BHR: Tensor | None) -> None:
        """Reduce one attention call.

        Args:
            call: the call.
            row_BHT: attention of CLS to every token, mean over the class tokens.
            columns_BHR: mean over patches of their attention to each prefix token.
        """
        if row_BHT is not None:
            row_BHT.copy_(call.rows(self.layout.positions("cls")).mean(-2))
        if columns_BHR is not None:
            columns_BHTR = call.columns(self.layout.prefix_positions)
            torch.mean(self.layout.patches_of(columns_BHTR), dim=-2, out=columns_BHR)
