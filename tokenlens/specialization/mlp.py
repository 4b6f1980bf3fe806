"""The linear maps of the MLP."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tokenlens.families.base import Family
from tokenlens.specialization._linear import LinearComponent


class MLP(LinearComponent):
    """Both of them, or three where it is gated."""

    def paths(self, family: Family, block: nn.Module) -> Sequence[str]:
        """As the family names them."""
        return family.components(block).of("mlp")
