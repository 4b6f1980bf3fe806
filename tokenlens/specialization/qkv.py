"""The projections to queries, keys and values, fused or separate."""

# Shapes: D channels in, O channels out (of q, k and v together).

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenlens.specialization._functions import Positions
from tokenlens.specialization._linear import SpecializedLinear, check_linear
from tokenlens.specialization.base import Component, SpecializedModule

_BIASES = ("q_bias", "v_bias")


class SpecializedQKV(SpecializedLinear):
    """A fused projection whose biases of q and v are attributes of the attention; k has none (Eva, Beit).

    Such an attention reads the projection's weight; it calls the module only if it has no biases itself. So the biases
    move into the projection.
    """

    def biases(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the biases of q and v with zeros for k between them."""
        return _join_biases(self.cls), _join_biases(self.patch)

    def map_names(self, path: str) -> dict[str, tuple[str, str]]:
        """Map names as usual, and the biases from the attention's names."""
        names = super().map_names(path)
        owner = path.rpartition(".")[0]
        return {
            key if key.rpartition(".")[2] not in _BIASES else f"{owner}.{key.rpartition('.')[2]}": both
            for key, both in names.items()
        }

    def install(self, owner: nn.Module, name: str) -> None:
        """Install, and remove the biases from the attention."""
        super().install(owner, name)
        for bias in (*_BIASES, "k_bias"):
            setattr(owner, bias, None)

    def remove(self, owner: nn.Module, name: str) -> None:
        """Put back a standard projection, and its biases in the attention."""
        linear = self.merge()
        setattr(owner, name, linear)
        for bias in _BIASES:
            setattr(owner, bias, getattr(linear, bias))
            delattr(linear, bias)
        owner.register_buffer("k_bias", torch.zeros_like(owner.get_parameter("q_bias")), persistent=False)


def _join_biases(linear: nn.Module) -> Tensor:
    q_bias, v_bias = linear.q_bias, linear.v_bias
    assert isinstance(q_bias, Tensor)
    assert isinstance(v_bias, Tensor)
    return torch.cat((q_bias, torch.zeros_like(q_bias), v_bias))


class QKV(Component):
    """The projections to queries, keys and values, specialized together."""

    def specialize(self, owner: nn.Module, name: str, positions: Positions) -> SpecializedModule:
        """Return a specialized linear map."""
        linear = check_linear(owner, name)
        if getattr(owner, "q_bias", None) is None:
            return SpecializedLinear(linear, positions)
        for bias in _BIASES:
            setattr(linear, bias, getattr(owner, bias))
        return SpecializedQKV(linear, positions)
