"""Replace tokens by their mean over images."""

from typing import ClassVar

from torch import Tensor

from tokenlens.interventions.base import Replaced, Replacement


class Mean(Replacement):
    """The mean over images at the same site and block: of the same special token, or of all patches."""

    needs: ClassVar[frozenset[str]] = frozenset({"statistics"})

    def compute(self, replaced: Replaced) -> Tensor:
        """Return the means."""
        assert replaced.mean_TD is not None
        return replaced.mean_TD
