"""The output projection of the attention."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tokenlens.families.base import Family
from tokenlens.specialization._linear import LinearComponent


class Proj(LinearComponent):
    """After the heads are joined."""

    def paths(self, family: Family, block: nn.Module) -> Sequence[str]:
        """As the family names it."""
        return family.components(block).of("proj")
