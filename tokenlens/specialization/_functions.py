"""Two sets of weights in one pass: norm, scale and linear map with one set for the prefix tokens, one for the patches.

Splitting the tokens, calling two modules and concatenating copies every activation twice. Here the patches' weights are
applied to all tokens where they lie, and the few prefix rows are computed again with their own weights and overwritten;
backward does the same. No row of a token counts for the other set's gradient, not even as rounding: a set whose tokens
do not reach the loss gets a gradient of exactly zero, which an optimizer like Adam would otherwise blow up.
"""

# Shapes: B images, T tokens, D channels in, O channels out, N = B·T, R prefix tokens.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Positions = tuple[int, ...]
"""Where the prefix tokens are in the sequence; negative ones count from its end."""


def places(x_BTD: Tensor, positions: Positions) -> Tensor | None:
    """A view of the tokens at some positions, (B, R, D), where they lie side by side, as they nearly always do."""
    start, count = positions[0], len(positions)
    return x_BTD.narrow(1, start, count) if positions[-1] - start + 1 == count else None


def rows(x_BTD: Tensor, positions: Positions) -> Tensor:
    """The tokens at some positions, (B, R, D): a view where they lie side by side."""
    view_BRD = places(x_BTD, positions)
    if view_BRD is None:
        return torch.cat([x_BTD.narrow(1, position, 1) for position in positions], dim=1)
    return view_BRD


def overwrite(x_BTD: Tensor, positions: Positions, rows_BRD: Tensor | None) -> Tensor:
    """Put rows (None: zeros) into their places, in place."""
    view_BRD = places(x_BTD, positions)
    if view_BRD is None:
        for index, position in enumerate(positions):
            overwrite(x_BTD, (position,), None if rows_BRD is None else rows_BRD.narrow(1, index, 1))
    elif rows_BRD is None:
        view_BRD.zero_()
    else:
        view_BRD.copy_(rows_BRD)
    return x_BTD


def _sum_over_patches(g_BTD: Tensor, positions: Positions) -> Tensor:
    """Sum over all tokens but those at ``positions``, (D,): a product with ones and zeros, which copies nothing."""
    ones_BT1 = overwrite(g_BTD.new_ones((*g_BTD.shape[:2], 1)), positions, None)
    return g_BTD.flatten(0, 1).mT @ ones_BT1.flatten()


def _normed(
    x_BTD: Tensor,
    weight_prefix_D: Tensor,
    bias_prefix_D: Tensor | None,
    weight_patch_D: Tensor,
    bias_patch_D: Tensor | None,
    eps: float,
    positions: Positions,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x − μ)/σ · weight + bias, each token by its set; and every token's mean and 1/σ, (B, T, 1)."""
    shape = x_BTD.shape[-1:]
    y_BTD, mean_BT1, rstd_BT1 = torch.native_layer_norm(x_BTD, shape, weight_patch_D, bias_patch_D, eps)
    x_BRD = rows(x_BTD, positions)
    overwrite(y_BTD, positions, torch.native_layer_norm(x_BRD, shape, weight_prefix_D, bias_prefix_D, eps)[0])
    return y_BTD, mean_BT1, rstd_BT1


class LayerNormFunction(torch.autograd.Function):
    """(x − μ)/σ · weight + bias; mean and variance of a token do not depend on the set."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        weight_prefix_D: Tensor,
        bias_prefix_D: Tensor | None,
        weight_patch_D: Tensor,
        bias_patch_D: Tensor | None,
        eps: float,
        positions: Positions,
    ) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        y_BTD, mean_BT1, rstd_BT1 = _normed(
            x_BTD, weight_prefix_D, bias_prefix_D, weight_patch_D, bias_patch_D, eps, positions
        )
        ctx.save_for_backward(x_BTD, mean_BT1, rstd_BT1, weight_prefix_D, bias_prefix_D, weight_patch_D, bias_patch_D)
        ctx.positions, ctx.eps = positions, eps
        return y_BTD

    @staticmethod
    def backward(ctx: Any, g_BTD: Tensor) -> Any:
        """Gradients of x and of each set from its own tokens."""
        x_BTD, mean_BT1, rstd_BT1, weight_prefix_D, bias_prefix_D, weight_patch_D, bias_patch_D = ctx.saved_tensors
        wants_x, wants_wc, wants_bc, wants_wp, wants_bp, *_ = ctx.needs_input_grad
        positions, shape = ctx.positions, x_BTD.shape[-1:]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph=True: what follows takes mean and variance for constants.
            found = _differentiable_backward(g_BTD, ctx.saved_tensors, ctx.needs_input_grad, ctx.eps, positions)
            return (*found, None, None)
        backward = torch.ops.aten.native_layer_norm_backward
        # Rows with 1/σ = 0 add exactly nothing to the weight's gradient.
        rstd_patch_BT1 = overwrite(rstd_BT1.clone(), positions, None)
        dx_BTD, dwp_D, _ = backward(
            g_BTD, x_BTD, shape, mean_BT1, rstd_patch_BT1, weight_patch_D, bias_patch_D, [wants_x, wants_wp, False]
        )
        dbp_D = _sum_over_patches(g_BTD, positions) if wants_bp else None
        # The kernel reads mean and 1/σ as if they were contiguous, whether they are or not.
        mean_BR1, rstd_BR1 = (rows(each_BT1, positions).contiguous() for each_BT1 in (mean_BT1, rstd_BT1))
        dx_BRD, dwc_D, dbc_D = backward(
            rows(g_BTD, positions),
            rows(x_BTD, positions),
            shape,
            mean_BR1,
            rstd_BR1,
            weight_prefix_D,
            bias_prefix_D,
            [wants_x, wants_wc, wants_bc],
        )
        if wants_x:
            overwrite(dx_BTD, positions, dx_BRD)
        return dx_BTD, dwc_D, dbc_D, dwp_D, dbp_D, None, None


def _differentiable_backward(
    g_BTD: Tensor, saved: tuple[Tensor | None, ...], needed: tuple[bool, ...], eps: float, positions: Positions
) -> list[Tensor | None]:
    """The gradients of LayerNorm by PyTorch's own rules, so that they have gradients themselves."""
    x_BTD, _, _, weight_prefix_D, bias_prefix_D, weight_patch_D, bias_patch_D = saved
    assert x_BTD is not None
    shape = x_BTD.shape[-1:]
    y_BTD = functional.layer_norm(x_BTD, shape, weight_patch_D, bias_patch_D, eps)
    x_BRD = rows(x_BTD, positions)
    overwrite(y_BTD, positions, functional.layer_norm(x_BRD, shape, weight_prefix_D, bias_prefix_D, eps))
    inputs = [x_BTD, weight_prefix_D, bias_prefix_D, weight_patch_D, bias_patch_D]
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=False) if need and tensor is not None]
    found = iter(torch.autograd.grad(y_BTD, wanted, g_BTD, create_graph=True))
    return [next(found) if need else None for need in needed[:5]]


def _scaled(x_BTD: Tensor, gamma_prefix_D: Tensor, gamma_patch_D: Tensor, positions: Positions) -> Tensor:
    """x · γ, channel by channel, each token by its set."""
    y_BTD = x_BTD * gamma_patch_D
    return overwrite(y_BTD, positions, rows(x_BTD, positions) * gamma_prefix_D)


class ScaleFunction(torch.autograd.Function):
    """x · γ, channel by channel."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, gamma_prefix_D: Tensor, gamma_patch_D: Tensor, positions: Positions) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        y_BTD = _scaled(x_BTD, gamma_prefix_D, gamma_patch_D, positions)
        ctx.save_for_backward(x_BTD, gamma_prefix_D, gamma_patch_D)
        ctx.positions = positions
        return y_BTD

    @staticmethod
    def backward(ctx: Any, g_BTD: Tensor) -> Any:
        """Gradients of x and of each set from its own tokens."""
        x_BTD, gamma_prefix_D, gamma_patch_D = ctx.saved_tensors
        wants_x, wants_prefix, wants_patch, _ = ctx.needs_input_grad
        positions = ctx.positions
        g_BRD = rows(g_BTD, positions)
        dx_BTD = overwrite(g_BTD * gamma_patch_D, positions, g_BRD * gamma_prefix_D) if wants_x else None
        d_prefix_D = d_patch_D = None
        if wants_patch:
            products_BTD = g_BTD * x_BTD
            d_prefix_D = rows(products_BTD, positions).sum((0, 1)) if wants_prefix else None
            d_patch_D = overwrite(products_BTD, positions, None).sum((0, 1))
        elif wants_prefix:
            d_prefix_D = (g_BRD * rows(x_BTD, positions)).sum((0, 1))
        return dx_BTD, d_prefix_D, d_patch_D, None


def _mapped(
    x_BTD: Tensor,
    weight_prefix_OD: Tensor,
    bias_prefix_O: Tensor | None,
    weight_patch_OD: Tensor,
    bias_patch_O: Tensor | None,
    positions: Positions,
) -> Tensor:
    """x Wᵀ + b, (B, T, D) → (B, T, O), each token by its set."""
    y_BTO = functional.linear(x_BTD, weight_patch_OD, bias_patch_O)
    # The prefix rows are corrected by the difference of the two sets, not computed anew: a product of few rows rounds
    # otherwise than one of many, which 12 blocks of DINOv2 blow up to 1e-4. Equal sets correct by exactly nothing.
    bias_O = None if bias_prefix_O is None or bias_patch_O is None else bias_prefix_O - bias_patch_O
    more_BRO = functional.linear(rows(x_BTD, positions), weight_prefix_OD - weight_patch_OD, bias_O)
    return overwrite(y_BTO, positions, rows(y_BTO, positions) + more_BRO)


class LinearFunction(torch.autograd.Function):
    """x Wᵀ + b."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        weight_prefix_OD: Tensor,
        bias_prefix_O: Tensor | None,
        weight_patch_OD: Tensor,
        bias_patch_O: Tensor | None,
        positions: Positions,
    ) -> Tensor:
        """(B, T, D) → (B, T, O)."""
        y_BTO = _mapped(x_BTD, weight_prefix_OD, bias_prefix_O, weight_patch_OD, bias_patch_O, positions)
        ctx.save_for_backward(x_BTD, weight_prefix_OD, weight_patch_OD)
        ctx.positions = positions
        return y_BTO

    @staticmethod
    def backward(ctx: Any, g_BTO: Tensor) -> Any:
        """Gradients of x and of each set from its own tokens."""
        x_BTD, weight_prefix_OD, weight_patch_OD = ctx.saved_tensors
        wants_x, wants_wc, wants_bc, wants_wp, wants_bp, _ = ctx.needs_input_grad
        positions = ctx.positions
        g_BRO, x_BRD = rows(g_BTO, positions), rows(x_BTD, positions)
        dx_BTD = overwrite(g_BTO @ weight_patch_OD, positions, g_BRO @ weight_prefix_OD) if wants_x else None
        dwc_OD = g_BRO.flatten(0, 1).mT @ x_BRD.flatten(0, 1) if wants_wc else None
        dbc_O = g_BRO.sum((0, 1)) if wants_bc else None
        dwp_OD = dbp_O = None
        if wants_wp:
            # One factor without the prefix rows is enough: copy the narrower one.
            if g_BTO.shape[-1] < x_BTD.shape[-1]:
                dwp_OD = overwrite(g_BTO.clone(), positions, None).flatten(0, 1).mT @ x_BTD.flatten(0, 1)
            else:
                dwp_OD = g_BTO.flatten(0, 1).mT @ overwrite(x_BTD.clone(), positions, None).flatten(0, 1)
        if wants_bp:
            dbp_O = _sum_over_patches(g_BTO, positions)
        return dx_BTD, dwc_OD, dbc_O, dwp_OD, dbp_O, None


def layer_norm(*arguments: Any) -> Tensor:
    """``LayerNormFunction``; without gradients the computation alone, which saves the function's own overhead."""
    found: Tensor = LayerNormFunction.apply(*arguments) if torch.is_grad_enabled() else _normed(*arguments)[0]
    return found


def scale(*arguments: Any) -> Tensor:
    """``ScaleFunction``, likewise."""
    found: Tensor = ScaleFunction.apply(*arguments) if torch.is_grad_enabled() else _scaled(*arguments)
    return found


def linear(*arguments: Any) -> Tensor:
    """``LinearFunction``, likewise."""
    found: Tensor = LinearFunction.apply(*arguments) if torch.is_grad_enabled() else _mapped(*arguments)
    return found
