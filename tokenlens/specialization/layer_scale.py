"""LayerScale: the gain per channel of what attention and MLP add."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tokenlens.families.base import Family
from tokenlens.specialization._functions import Positions, scale
from tokenlens.specialization.base import Component, SpecializedModule, refused


class SpecializedLayerScale(SpecializedModule):
    """x · γ."""

    def __init__(self, standard: nn.Module, positions: Positions) -> None:
        super().__init__(standard, positions)
        [(self.gain, _)] = standard.named_parameters()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        return scale(x_BTD, getattr(self.cls, self.gain), getattr(self.patch, self.gain), self.positions)


class Gain(nn.Module):
    """A bare parameter as a module."""

    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma


class SpecializedGain(SpecializedLayerScale):
    """In the place of a bare parameter that its block multiplies by: ``block.gamma_1 * x`` (Eva, Beit)."""

    def __mul__(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self(x_BTD)
        return y_BTD

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch.compile asks instead of ``__mul__``, because the other factor is a tensor."""
        gain, x_BTD = args if isinstance(args[0], cls) else reversed(args)
        assert func.__name__ in ("mul", "__mul__", "__rmul__"), func
        return gain(x_BTD)

    def keys(self, path: str) -> dict[str, tuple[str, str]]:
        """The parameter's own name stands for both."""
        return {path: (f"{path}.cls.gamma", f"{path}.patch.gamma")}

    def install(self, owner: nn.Module, name: str) -> None:
        """The parameter makes room first."""
        delattr(owner, name)
        super().install(owner, name)

    def remove(self, owner: nn.Module, name: str) -> None:
        """A bare parameter again."""
        gain = self.merged()
        delattr(owner, name)
        assert isinstance(gain, Gain)
        owner.register_parameter(name, gain.gamma)


class LayerScale(Component):
    """As a module or as a bare parameter, whichever the block has."""

    def paths(self, family: Family, block: nn.Module) -> Sequence[str]:
        """As the family names them."""
        return family.components(block).of("layer_scale")

    def specialized(self, owner: nn.Module, name: str, positions: Positions) -> SpecializedModule:
        """Two vectors of gains."""
        standard = getattr(owner, name)
        if isinstance(standard, nn.Parameter):
            gain = Gain(standard)
            gain.training = owner.training
            return SpecializedGain(gain, positions)
        parameters = list(standard.parameters()) if isinstance(standard, nn.Module) else []
        if len(parameters) != 1 or parameters[0].dim() != 1:
            raise refused(owner, name, "is not a LayerScale with one gain per channel")
        return SpecializedLayerScale(standard, positions)
