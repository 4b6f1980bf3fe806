"""Specialized linear maps, for the components that consist of them."""

# Shapes: B images, T tokens, D channels in, O channels out.

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenlens.specialization._functions import Positions, autocast_to, is_autocasting, linear
from tokenlens.specialization.base import Component, SpecializedModule, unsupported_module


class SpecializedLinear(SpecializedModule):
    """x Wᵀ + b."""

    cls: nn.Linear
    patch: nn.Linear

    def biases(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the biases (O,) for special tokens and for patches."""
        return self.cls.bias, self.patch.bias

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, O)."""
        bias_special_O, bias_patch_O = self.biases()
        tensors: list[Tensor | None] = [x_BTD, self.cls.weight, bias_special_O, self.patch.weight, bias_patch_O]
        if not is_autocasting(x_BTD):
            return linear(*tensors, self.positions)
        device = x_BTD.device.type
        tensors = autocast_to(torch.get_autocast_dtype(device), tensors)
        with torch.autocast(device, enabled=False):
            return linear(*tensors, self.positions)


class LinearComponent(Component):
    """A component made of ``nn.Linear`` modules."""

    def specialize(self, owner: nn.Module, name: str, positions: Positions) -> SpecializedModule:
        """Return a specialized linear map."""
        return SpecializedLinear(check_linear(owner, name), positions)


def check_linear(owner: nn.Module, name: str) -> nn.Linear:
    """Return the ``nn.Linear`` called ``name``; raise LookupError if it is anything else."""
    standard = getattr(owner, name)
    if not isinstance(standard, nn.Linear) or type(standard).forward is not nn.Linear.forward:
        raise unsupported_module(owner, name, "is not an nn.Linear")
    return standard
