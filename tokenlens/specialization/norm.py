"""Norms: LayerNorm and RMSNorm, in the blocks and after the last block."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenlens.families import norm_parameters
from tokenlens.specialization._functions import Positions, is_autocasting, layer_norm, scale
from tokenlens.specialization.base import Component, SpecializedModule, unsupported_module


class SpecializedNorm(SpecializedModule):
    """A norm with its ε, computed in float32 if the standard one is."""

    def __init__(self, standard: nn.Module, positions: Positions, eps: float, in_float32: bool) -> None:
        super().__init__(standard, positions)
        self.eps = eps
        self.in_float32 = in_float32


class SpecializedLayerNorm(SpecializedNorm):
    """(x − μ)/σ · weight + bias."""

    cls: nn.LayerNorm
    patch: nn.LayerNorm

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        tensors = [x_BTD, self.cls.weight, self.cls.bias, self.patch.weight, self.patch.bias]
        device = x_BTD.device.type
        # Autocast runs layer_norm in float32, except on the CPU, where it leaves it as it is.
        if not self.in_float32 and (device == "cpu" or not is_autocasting(x_BTD)):
            return layer_norm(*tensors, self.eps, self.positions)
        with torch.autocast(device, enabled=False):
            tensors = [None if tensor is None else tensor.float() for tensor in tensors]
            y_BTD = layer_norm(*tensors, self.eps, self.positions)
        return y_BTD.to(x_BTD.dtype) if self.in_float32 else y_BTD


class SpecializedRMSNorm(SpecializedNorm):
    """x/rms(x) · weight."""

    cls: nn.RMSNorm
    patch: nn.RMSNorm

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x: Tensor = x_BTD
        weights: list[Tensor] = [self.cls.weight, self.patch.weight]
        if self.in_float32:
            x, *weights = (tensor.float() for tensor in (x, *weights))
        # On a CPU, PyTorch's rms_norm with a weight is the same two steps.
        y_BTD = scale(functional.rms_norm(x, x.shape[-1:], None, self.eps), *weights, self.positions)
        return y_BTD.to(x_BTD.dtype) if self.in_float32 else y_BTD


class Norm(Component):
    """The norms of a block and the final norm, without norms inside attention or MLP."""

    takes_final_norm = True

    def specialize(self, owner: nn.Module, name: str, positions: Positions) -> SpecializedModule:
        """Return a specialized LayerNorm or RMSNorm."""
        standard = getattr(owner, name)
        found = norm_parameters(standard)
        weight = getattr(standard, "weight", None)
        if weight is None:
            raise unsupported_module(owner, name, "has no weights")
        assert found.weight_patch is not None
        if found.weight_patch.data_ptr() != weight.data_ptr():
            raise unsupported_module(owner, name, "does not multiply by its weight as stored")
        kind = SpecializedLayerNorm if found.kind == "layer" else SpecializedRMSNorm
        return kind(standard, positions, found.eps, in_float32=type(standard).__name__.endswith("Fp32"))
