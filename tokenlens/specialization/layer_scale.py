"""LayerScale: a gain per channel on the outputs of attention and MLP."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenlens.specialization._functions import Positions, scale
from tokenlens.specialization.base import Component, SpecializedModule, unsupported_module


class SpecializedLayerScale(SpecializedModule):
    """x · γ."""

    def __init__(self, standard: nn.Module, positions: Positions) -> None:
        super().__init__(standard, positions)
        [(self.gain, _)] = standard.named_parameters()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return scale(x_BTD, getattr(self.cls, self.gain), getattr(self.patch, self.gain), self.positions)


class Gain(nn.Module):
    """A bare parameter as a module."""

    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma


class SpecializedGain(SpecializedLayerScale):
    """Replacement of a bare parameter that the block multiplies by: ``block.gamma_1 * x`` (Eva, Beit)."""

    def __mul__(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self(x_BTD)
        return y_BTD

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Multiply; torch.compile calls this instead of ``__mul__``, because the other factor is a tensor."""
        gain, x_BTD = args if isinstance(args[0], cls) else reversed(args)
        assert func.__name__ in ("mul", "__mul__", "__rmul__"), func
        return gain(x_BTD)

    def map_names(self, path: str) -> dict[str, tuple[str, str]]:
        """Map the parameter's name to the names of both gains."""
        return {path: (f"{path}.cls.gamma", f"{path}.patch.gamma")}

    def install(self, owner: nn.Module, name: str) -> None:
        """Delete the parameter, whose name is needed, then install."""
        delattr(owner, name)
        super().install(owner, name)

    def remove(self, owner: nn.Module, name: str) -> None:
        """Put back a bare parameter."""
        gain = self.merge()
        delattr(owner, name)
        assert isinstance(gain, Gain)
        owner.register_parameter(name, gain.gamma)


class LayerScale(Component):
    """LayerScale as a module or as a bare parameter."""

    def specialize(self, owner: nn.Module, name: str, positions: Positions) -> SpecializedModule:
        """Return a specialized LayerScale."""
        standard = getattr(owner, name)
        if isinstance(standard, nn.Parameter):
            gain = Gain(standard)
            gain.training = owner.training
            return SpecializedGain(gain, positions)
        parameters = list(standard.parameters()) if isinstance(standard, nn.Module) else []
        if len(parameters) != 1 or parameters[0].dim() != 1:
            raise unsupported_module(owner, name, "is not a LayerScale with one gain per channel")
        return SpecializedLayerScale(standard, positions)
