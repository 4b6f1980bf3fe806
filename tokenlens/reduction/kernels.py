"""Reductions of activations in torch operations, on any device and in any precision."""

# Shapes: B images, T tokens, P patches, R prefix tokens, K sums over patches, D channels, H heads, d channels per head.

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from tokenlens.families import NormParameters
from tokenlens.recording.attention import AttentionCall, as_float
from tokenlens.recording.capture import NormCall
from tokenlens.tokens import TokenLayout, take

Reduced = dict[str, Tensor]
"""The fields of a summary by name."""


def sum_patches(patches: Tensor, weights: dict[str, Tensor]) -> Reduced:
    """Compute Σ_i w_i·x_i of patches (..., P, D) for several sets of weights (..., P), each (..., D)."""
    if not weights:
        return {}
    if torch.get_float32_matmul_precision() == "highest":
        sums = (torch.stack([*weights.values()], dim=-2) @ patches).unbind(-2)
    else:  # The user allows matrix products in TF32 or bfloat16, which would round these sums.
        sums = tuple((weight.unsqueeze(-1) * patches).sum(-2) for weight in weights.values())
    return dict(zip(weights, sums, strict=True))


class ReductionKernels:
    """The reductions of one model's activations.

    Activations come in the model's own precision; results are float32, or float64 for a model in float64.
    """

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout

    def reduce_tokens(self, x: Tensor, wanted: Collection[str], other: Tensor | None = None) -> Reduced:
        """Reduce tokens (B, T, D) or (B, H, T, d).

        Args:
            x: the tokens.
            wanted: the sums over patches.
            other: tokens of the same shape.

        Returns:
            The fields of ``TokenSummary``, and with ``other`` the ``product`` (B, T), the inner product of each token.
        """
        x = as_float(x)
        reduced = self._reduce(x, wanted, torch.linalg.vector_norm(x, dim=-1), {})
        if other is not None:
            reduced["product"] = torch.linalg.vecdot(x, other.to(x.dtype))
        return reduced

    def _reduce(self, x: Tensor, wanted: Collection[str], norms: Tensor, weights: dict[str, Tensor]) -> Reduced:
        """Return all fields, and sums of patches with further weights (..., P) from the same product."""
        patches, norms_P = self.layout.patches_of(x), self.layout.patches_of(norms, -1)
        linear = {"unit_patch_sum": norms_P.reciprocal(), "patch_sum": torch.ones_like(norms_P)}
        weights = {name: weight for name, weight in linear.items() if name in wanted} | weights
        reduced = sum_patches(patches, weights) | {"norms": norms}
        reduced["prefix"] = take(x, self.layout.prefix_positions, -2).clone()
        if "patch_abs_sum" in wanted:
            reduced["patch_abs_sum"] = patches.abs().sum(-2)
        if "patch_square_sum" in wanted:
            reduced["patch_square_sum"] = patches.square().sum(-2)
        return reduced

    def reduce_norm(
        self,
        x_BTD: Tensor,
        y_BTD: Tensor,
        parameters: NormParameters,
        call: NormCall | None,
        before: Collection[str],
        after: Collection[str],
    ) -> tuple[Reduced, Reduced, Reduced]:
        """Reduce a norm: its input and output as ``reduce_tokens`` does, and the patches after each of its stages.

        Args:
            x_BTD, y_BTD: input and output.
            parameters: the parameters of the norm.
            call: the statistics of the norm's kernel; None if it did not report them.
            before, after: the sums over patches wanted of the input and the output.

        Returns:
            The fields of input, output, and of the stages: ``patch_lengths``, ``centred_patch_sum``,
            ``weighted_patch_sum`` and ``mean`` of ``NormSummary``.
        """
        output = self.reduce_tokens(y_BTD, after)
        weight_D, found = parameters.weight_patch, None
        if call is not None and x_BTD.dtype == y_BTD.dtype == output["norms"].dtype:
            found = self._stages_from_output(x_BTD, y_BTD, parameters, call, before, output["norms"])
        mean_BT = None if call is None else call.mean_BT
        if call is None and parameters.kind == "layer":
            mean_BT = as_float(x_BTD).mean(-1)
        reduced, stages = found or self._stages_from_input(x_BTD, mean_BT, weight_D, before)
        stages.setdefault("weighted_patch_sum", stages["centred_patch_sum"])
        if weight_D is not None:
            stages["weighted_patch_sum"] = stages["weighted_patch_sum"] * weight_D.to(stages["patch_lengths"].dtype)
        return reduced, output, stages | ({} if mean_BT is None else {"mean": mean_BT})

    def _stages_from_input(
        self, x_BTD: Tensor, mean_BT: Tensor | None, weight_D: Tensor | None, before: Collection[str]
    ) -> tuple[Reduced, Reduced]:
        """Reduce the input, and the stages to lengths and Σ_i (x_i − μ_i) over the lengths after each stage."""
        centred_BPD = as_float(self.layout.patches_of(x_BTD))
        if mean_BT is not None:
            # Subtract, then square: E[x²] − μ² cancels where |μ| ≫ σ.
            centred_BPD = centred_BPD - self.layout.patches_of(mean_BT, -1).unsqueeze(-1)
        lengths_BP = torch.linalg.vector_norm(centred_BPD, dim=-1)
        weights = {"centred_patch_sum": lengths_BP.reciprocal()}
        if weight_D is not None:
            weighted_BPD = centred_BPD * weight_D.to(centred_BPD.dtype)
            weights["weighted_patch_sum"] = torch.linalg.vector_norm(weighted_BPD, dim=-1).reciprocal()
        return self.reduce_tokens(x_BTD, before), sum_patches(centred_BPD, weights) | {"patch_lengths": lengths_BP}

    def _stages_from_output(
        self,
        x_BTD: Tensor,
        y_BTD: Tensor,
        parameters: NormParameters,
        call: NormCall,
        before: Collection[str],
        after_BT: Tensor,
    ) -> tuple[Reduced, Reduced] | None:
        """Reduce the same without a tensor x − μ, or return None where that loses digits; ``after_BT`` is ‖y‖.

        With v = 1/rstd² − ε: ‖x‖² = D·(v + μ²), ‖x − μ‖² = D·v and ‖γ⊙(x − μ)‖ = ‖y − β‖/rstd. Only on the CPU, where
        looking at numbers does not wait for a device.
        """
        if y_BTD.device.type != "cpu":
            return None
        patches_of, channels, mean_BT = self.layout.patches_of, y_BTD.shape[-1], call.mean_BT
        variance_BT = call.rstd_BT.pow(-2).sub_(parameters.eps)
        squares_BT = variance_BT if mean_BT is None else variance_BT + mean_BT.square()
        # ε that is large beside v loses digits of it, and a mean that is large beside σ those of centred sums.
        if not bool(((squares_BT + parameters.eps) / variance_BT).amax() <= 17):  # NaN, too
            return None
        lengths_BP = torch.sqrt(patches_of(variance_BT, -1) * channels)
        weights = {"centred_patch_sum": lengths_BP.reciprocal()}
        if parameters.weight_patch is not None:
            norms_BP, bias_D = patches_of(after_BT, -1), parameters.bias_patch
            if bias_D is not None:
                squares_BP = norms_BP.square() - 2 * torch.linalg.vecdot(patches_of(y_BTD), bias_D) + bias_D.dot(bias_D)
                # Digits cancel where y is much longer than y − β.
                if not bool((norms_BP.square() / squares_BP).amax() <= 30):
                    return None
                norms_BP = squares_BP.sqrt_()
            weights["weighted_patch_sum"] = patches_of(call.rstd_BT, -1) / norms_BP
        reduced = self._reduce(x_BTD, before, torch.sqrt(squares_BT * channels), weights)
        stages = {name: reduced.pop(name) for name in weights}
        if mean_BT is not None:  # Σ w_i (x_i − μ_i) = Σ w_i x_i − Σ w_i μ_i
            means_BP = patches_of(mean_BT, -1)
            for name, weight_BP in weights.items():
                stages[name] = stages[name] - torch.linalg.vecdot(weight_BP, means_BP).unsqueeze(-1)
        return reduced, stages | {"patch_lengths": lengths_BP}

    def reduce_attention(self, call: AttentionCall) -> Reduced:
        """Reduce one attention call to ``cls_row`` and ``patch_to_prefix`` of ``AttentionSummary``.

        The first only with CLS, the second only with prefix tokens, and where all tokens attend.
        """
        reduced = {}
        if self.layout.has("cls"):
            reduced["cls_row"] = call.rows(self.layout.positions("cls")).mean(-2)
        if self.layout.prefix and call.q_BHTd.shape[-2] == self.layout.tokens:
            columns_BHTR = call.columns(self.layout.prefix_positions)
            reduced["patch_to_prefix"] = self.layout.patches_of(columns_BHTR).mean(-2)
        return reduced
