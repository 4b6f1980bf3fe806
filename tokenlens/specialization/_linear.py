"""A linear map with two sets of weights, for the components that consist of linear maps."""

# Shapes: B images, T tokens, D channels in, O channels out.

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenlens.specialization._functions import Positions, linear
from tokenlens.specialization.base import Component, SpecializedModule, autocast_to, autocasting, refused


class SpecializedLinear(SpecializedModule):
    """x Wᵀ + b."""

    cls: nn.Linear
    patch: nn.Linear

    def biases(self) -> tuple[Tensor | None, Tensor | None]:
        """The bias (O,) of either set."""
        return self.cls.bias, self.patch.bias

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, O)."""
        bias_prefix_O, bias_patch_O = self.biases()
        tensors: list[Tensor | None] = [x_BTD, self.cls.weight, bias_prefix_O, self.patch.weight, bias_patch_O]
        if not autocasting(x_BTD):
            return linear(*tensors, self.positions)
        device = x_BTD.device.type
        tensors = autocast_to(torch.get_autocast_dtype(device), tensors)
        with torch.autocast(device, enabled=False):
            return linear(*tensors, self.positions)


class LinearComponent(Component):
    """A component made of ``nn.Linear`` modules."""

    def specialized(self, owner: nn.Module, name: str, positions: Positions) -> SpecializedModule:
        """Two linear maps."""
        return SpecializedLinear(checked_linear(owner, name), positions)


def checked_linear(owner: nn.Module, name: str) -> nn.Linear:
    """The ``nn.Linear`` called ``name``; LookupError for anything that computes something else."""
    standard = getattr(owner, name)
    if not isinstance(standard, nn.Linear) or type(standard).forward is not nn.Linear.forward:
        raise refused(owner, name, "is not an nn.Linear")
    return standard
