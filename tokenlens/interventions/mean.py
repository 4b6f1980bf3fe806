"""Replace tokens by their mean over images."""

from typing import ClassVar

from torch import Tensor

from tokenlens.interventions.base import Given, TokenReplacement


class Mean(TokenReplacement):
    """The mean over images at the same site and block: of the same special token, or of all patches."""

    needs: ClassVar[frozenset[str]] = frozenset({"statistics"})

    def compute(self, x_BTD: Tensor, given: Given) -> Tensor:
        """Return the means."""
        assert given.mean_TD is not None
        return given.mean_TD
