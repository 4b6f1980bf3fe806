"""The projections to queries, keys and values, fused into one or separate."""

# Shapes: D channels in, O channels out (of q, k and v together).

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenlens.families.base import Family
from tokenlens.specialization._functions import Positions
from tokenlens.specialization._linear import SpecializedLinear, checked_linear
from tokenlens.specialization.base import Component, SpecializedModule

_BIASES = ("q_bias", "v_bias")


class SpecializedQKV(SpecializedLinear):
    """A fused projection whose attention keeps the biases of q and v itself and adds none to k (Eva, Beit).

    Such an attention reads the weight and never calls the module; without biases of its own it calls it. So the biases
    move into the two sets.
    """

    def biases(self) -> tuple[Tensor | None, Tensor | None]:
        """q's and v's, with zeros for k between them."""
        return _joined(self.cls), _joined(self.patch)

    def keys(self, path: str) -> dict[str, tuple[str, str]]:
        """The biases were the attention's."""
        names = super().keys(path)
        owner = path.rpartition(".")[0]
        return {
            key if key.rpartition(".")[2] not in _BIASES else f"{owner}.{key.rpartition('.')[2]}": both
            for key, both in names.items()
        }

    def install(self, owner: nn.Module, name: str) -> None:
        """Take the biases from the attention."""
        super().install(owner, name)
        for bias in (*_BIASES, "k_bias"):
            setattr(owner, bias, None)

    def remove(self, owner: nn.Module, name: str) -> None:
        """Give them back."""
        linear = self.merged()
        setattr(owner, name, linear)
        for bias in _BIASES:
            setattr(owner, bias, getattr(linear, bias))
            delattr(linear, bias)
        owner.register_buffer("k_bias", torch.zeros_like(owner.get_parameter("q_bias")), persistent=False)


def _joined(linear: nn.Module) -> Tensor:
    q_bias, v_bias = linear.q_bias, linear.v_bias
    assert isinstance(q_bias, Tensor)
    assert isinstance(v_bias, Tensor)
    return torch.cat((q_bias, torch.zeros_like(q_bias), v_bias))


class QKV(Component):
    """Queries, keys and values together."""

    def paths(self, family: Family, block: nn.Module) -> Sequence[str]:
        """As the family names them: one path or three."""
        return family.components(block).of("qkv")

    def specialized(self, owner: nn.Module, name: str, positions: Positions) -> SpecializedModule:
        """Two linear maps."""
        linear = checked_linear(owner, name)
        if getattr(owner, "q_bias", None) is None:
            return SpecializedLinear(linear, positions)
        for bias in _BIASES:
            setattr(linear, bias, getattr(owner, bias))
        return SpecializedQKV(linear, positions)
