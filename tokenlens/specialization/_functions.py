"""LayerNorm, scale and linear map with separate weights for special tokens and patches.

Splitting the tokens, calling two modules and concatenating copies every activation twice. Here the patches' weights are
applied to all tokens, and the few rows of special tokens are computed again with their weights and overwritten;
backward does the same. Tokens never contribute to the gradient of the other tokens' weights, not even as rounding
errors: weights whose tokens do not reach the loss get a gradient of exactly zero, because Adam would turn rounding
errors into full-size steps.
"""

# Shapes: B images, T tokens, D channels in, O channels out, N = B·T, R special tokens.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Positions = tuple[int, ...]
"""Positions of the special tokens in the sequence; negative ones count from its end."""


def view_rows(x_BTD: Tensor, positions: Positions) -> Tensor | None:
    """Return a view of the tokens at some positions, (B, R, D); None if the positions are not consecutive."""
    start, count = positions[0], len(positions)
    return x_BTD.narrow(1, start, count) if positions[-1] - start + 1 == count else None


def take_rows(x_BTD: Tensor, positions: Positions) -> Tensor:
    """Return the tokens at some positions, (B, R, D): a view if the positions are consecutive, else a copy."""
    view_BRD = view_rows(x_BTD, positions)
    if view_BRD is None:
        return torch.cat([x_BTD.narrow(1, position, 1) for position in positions], dim=1)
    return view_BRD


def overwrite_rows(x_BTD: Tensor, positions: Positions, rows_BRD: Tensor | None) -> Tensor:
    """Overwrite the tokens at some positions in place, with zeros if the rows are None; return ``x_BTD``."""
    view_BRD = view_rows(x_BTD, positions)
    if view_BRD is None:
        for index, position in enumerate(positions):
            overwrite_rows(x_BTD, (position,), None if rows_BRD is None else rows_BRD.narrow(1, index, 1))
    elif rows_BRD is None:
        view_BRD.zero_()
    else:
        view_BRD.copy_(rows_BRD)
    return x_BTD


def _sum_patches(g_BTD: Tensor, positions: Positions) -> Tensor:
    """Sum over all tokens but those at ``positions``, (D,), as a product with ones and zeros, which copies nothing."""
    ones_BT1 = overwrite_rows(g_BTD.new_ones((*g_BTD.shape[:2], 1)), positions, None)
    return g_BTD.flatten(0, 1).mT @ ones_BT1.flatten()


def _layer_norm(
    x_BTD: Tensor,
    weight_special_D: Tensor,
    bias_special_D: Tensor | None,
    weight_patch_D: Tensor,
    bias_patch_D: Tensor | None,
    eps: float,
    positions: Positions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x − μ)/σ · weight + bias with each token's weights, and the mean and 1/σ of every token, (B, T, 1)."""
    shape = x_BTD.shape[-1:]
    y_BTD, mean_BT1, rstd_BT1 = torch.native_layer_norm(x_BTD, shape, weight_patch_D, bias_patch_D, eps)
    x_BRD = take_rows(x_BTD, positions)
    overwrite_rows(y_BTD, positions, torch.native_layer_norm(x_BRD, shape, weight_special_D, bias_special_D, eps)[0])
    return y_BTD, mean_BT1, rstd_BT1


class LayerNormFunction(torch.autograd.Function):
    """(x − μ)/σ · weight + bias."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Map (B, T, D) to (B, T, D); the arguments are those of ``_layer_norm``."""
        y_BTD, mean_BT1, rstd_BT1 = _layer_norm(*arguments)
        x_BTD, *parameters, ctx.eps, ctx.positions = arguments
        ctx.save_for_backward(x_BTD, mean_BT1, rstd_BT1, *parameters)
        return y_BTD

    @staticmethod
    def backward(ctx: Any, g_BTD: Tensor) -> Any:
        """Return the gradients of x, and of both weights from their tokens alone."""
        x_BTD, mean_BT1, rstd_BT1, weight_special_D, bias_special_D, weight_patch_D, bias_patch_D = ctx.saved_tensors
        wants_x, wants_wc, wants_bc, wants_wp, wants_bp, *_ = ctx.needs_input_grad
        positions, shape = ctx.positions, x_BTD.shape[-1:]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph=True: the kernels below treat mean and variance as constants.
            found = _differentiable_backward(g_BTD, ctx.saved_tensors, ctx.needs_input_grad, ctx.eps, positions)
            return (*found, None, None)
        backward = torch.ops.aten.native_layer_norm_backward
        # Rows with 1/σ = 0 add exactly nothing to the weight's gradient.
        rstd_patch_BT1 = overwrite_rows(rstd_BT1.clone(), positions, None)
        dx_BTD, dwp_D, _ = backward(
            g_BTD, x_BTD, shape, mean_BT1, rstd_patch_BT1, weight_patch_D, bias_patch_D, [wants_x, wants_wp, False]
        )
        dbp_D = _sum_patches(g_BTD, positions) if wants_bp else None
        # The kernel assumes that mean and 1/σ are contiguous.
        mean_BR1, rstd_BR1 = (take_rows(each_BT1, positions).contiguous() for each_BT1 in (mean_BT1, rstd_BT1))
        dx_BRD, dwc_D, dbc_D = backward(
            take_rows(g_BTD, positions),
            take_rows(x_BTD, positions),
            shape,
            mean_BR1,
            rstd_BR1,
            weight_special_D,
            bias_special_D,
            [wants_x, wants_wc, wants_bc],
        )
        if wants_x:
            overwrite_rows(dx_BTD, positions, dx_BRD)
        return dx_BTD, dwc_D, dbc_D, dwp_D, dbp_D, None, None


def _differentiable_backward(
    g_BTD: Tensor, saved: tuple[Tensor | None, ...], needed: tuple[bool, ...], eps: float, positions: Positions
) -> list[Tensor | None]:
    """Compute the gradients of LayerNorm with PyTorch's autograd, so that they have gradients themselves."""
    x_BTD, _, _, weight_special_D, bias_special_D, weight_patch_D, bias_patch_D = saved
    assert x_BTD is not None
    shape = x_BTD.shape[-1:]
    y_BTD = functional.layer_norm(x_BTD, shape, weight_patch_D, bias_patch_D, eps)
    x_BRD = take_rows(x_BTD, positions)
    overwrite_rows(y_BTD, positions, functional.layer_norm(x_BRD, shape, weight_special_D, bias_special_D, eps))
    inputs = [x_BTD, weight_special_D, bias_special_D, weight_patch_D, bias_patch_D]
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=False) if need and tensor is not None]
    found = iter(torch.autograd.grad(y_BTD, wanted, g_BTD, create_graph=True))
    return [next(found) if need else None for need in needed[:5]]


def _scale(x_BTD: Tensor, gamma_special_D: Tensor, gamma_patch_D: Tensor, positions: Positions) -> Tensor:
    """Return x · γ, channel by channel, with each token's γ."""
    y_BTD = x_BTD * gamma_patch_D
    return overwrite_rows(y_BTD, positions, take_rows(x_BTD, positions) * gamma_special_D)


class ScaleFunction(torch.autograd.Function):
    """x · γ, channel by channel."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Map (B, T, D) to (B, T, D); the arguments are those of ``_scale``."""
        *tensors, ctx.positions = arguments
        ctx.save_for_backward(*tensors)
        return _scale(*arguments)

    @staticmethod
    def backward(ctx: Any, g_BTD: Tensor) -> Any:
        """Return the gradients of x, and of both weights from their tokens alone."""
        x_BTD, gamma_special_D, gamma_patch_D = ctx.saved_tensors
        wants_x, wants_special, wants_patch, _ = ctx.needs_input_grad
        positions = ctx.positions
        g_BRD = take_rows(g_BTD, positions)
        dx_BTD = overwrite_rows(g_BTD * gamma_patch_D, positions, g_BRD * gamma_special_D) if wants_x else None
        d_special_D = d_patch_D = None
        if wants_patch:
            products_BTD = g_BTD * x_BTD
            d_special_D = take_rows(products_BTD, positions).sum((0, 1)) if wants_special else None
            d_patch_D = overwrite_rows(products_BTD, positions, None).sum((0, 1))
        elif wants_special:
            d_special_D = (g_BRD * take_rows(x_BTD, positions)).sum((0, 1))
        return dx_BTD, d_special_D, d_patch_D, None


def _linear(
    x_BTD: Tensor,
    weight_special_OD: Tensor,
    bias_special_O: Tensor | None,
    weight_patch_OD: Tensor,
    bias_patch_O: Tensor | None,
    positions: Positions,
) -> Tensor:
    """Return x Wᵀ + b, (B, T, O), with each token's weights."""
    y_BTO = functional.linear(x_BTD, weight_patch_OD, bias_patch_O)
    # Correct the special rows by the difference of the weights instead of computing them anew: a product of few rows is
    # rounded differently from one of many, which 12 blocks of DINOv2 amplify to 1e-4. Equal weights correct by zero.
    bias_O = None if bias_special_O is None or bias_patch_O is None else bias_special_O - bias_patch_O
    more_BRO = functional.linear(take_rows(x_BTD, positions), weight_special_OD - weight_patch_OD, bias_O)
    return overwrite_rows(y_BTO, positions, take_rows(y_BTO, positions) + more_BRO)


class LinearFunction(torch.autograd.Function):
    """x Wᵀ + b."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Map (B, T, D) to (B, T, O); the arguments are those of ``_linear``."""
        x_BTD, weight_special_OD, _, weight_patch_OD, _, ctx.positions = arguments
        ctx.save_for_backward(x_BTD, weight_special_OD, weight_patch_OD)
        return _linear(*arguments)

    @staticmethod
    def backward(ctx: Any, g_BTO: Tensor) -> Any:
        """Return the gradients of x, and of both weights from their tokens alone."""
        x_BTD, weight_special_OD, weight_patch_OD = ctx.saved_tensors
        wants_x, wants_wc, wants_bc, wants_wp, wants_bp, _ = ctx.needs_input_grad
        positions = ctx.positions
        g_BRO, x_BRD = take_rows(g_BTO, positions), take_rows(x_BTD, positions)
        dx_BTD = overwrite_rows(g_BTO @ weight_patch_OD, positions, g_BRO @ weight_special_OD) if wants_x else None
        dwc_OD = g_BRO.flatten(0, 1).mT @ x_BRD.flatten(0, 1) if wants_wc else None
        dbc_O = g_BRO.sum((0, 1)) if wants_bc else None
        dwp_OD = dbp_O = None
        if wants_wp:
            # It is enough to zero the special rows in one factor: copy the narrower one.
            if g_BTO.shape[-1] < x_BTD.shape[-1]:
                dwp_OD = overwrite_rows(g_BTO.clone(), positions, None).flatten(0, 1).mT @ x_BTD.flatten(0, 1)
            else:
                dwp_OD = g_BTO.flatten(0, 1).mT @ overwrite_rows(x_BTD.clone(), positions, None).flatten(0, 1)
        if wants_bp:
            dbp_O = _sum_patches(g_BTO, positions)
        return dx_BTD, dwc_OD, dbc_O, dwp_OD, dbp_O, None


def layer_norm(*arguments: Any) -> Tensor:
    """Apply ``LayerNormFunction``, or without gradients its forward computation alone, which has less overhead."""
    found: Tensor = LayerNormFunction.apply(*arguments) if torch.is_grad_enabled() else _layer_norm(*arguments)[0]
    return found


def scale(*arguments: Any) -> Tensor:
    """Apply ``ScaleFunction``, or without gradients its forward computation alone."""
    found: Tensor = ScaleFunction.apply(*arguments) if torch.is_grad_enabled() else _scale(*arguments)
    return found


def linear(*arguments: Any) -> Tensor:
    """Apply ``LinearFunction``, or without gradients its forward computation alone."""
    found: Tensor = LinearFunction.apply(*arguments) if torch.is_grad_enabled() else _linear(*arguments)
    return found


def is_autocasting(x: Tensor) -> bool:
    """Return whether autocast would cast this tensor."""
    device = x.device.type
    return _has_autocast(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64


@torch.compiler.assume_constant_result  # torch.compile cannot trace the call in torch 2.11
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def autocast_to(dtype: torch.dtype, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Cast floating-point tensors as autocast does, differentiably; float64 and integers stay as they are.

    Call it before entering a custom function: autocast caches what it casts inside one without a gradient path to the
    weight, so a second use of the weight would get no gradient.
    """
    return [x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors]
