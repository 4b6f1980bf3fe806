"""Replace tokens by those of another image."""

from typing import ClassVar

from torch import Tensor

from tokenlens.interventions.base import Replaced, Replacement


class Shuffle(Replacement):
    """The same tokens of another image: of the one before, in one cycle through all images in seeded order."""

    needs: ClassVar[frozenset[str]] = frozenset({"donors"})

    def compute(self, replaced: Replaced) -> Tensor:
        """Return the other images' tokens."""
        assert replaced.donors_BTD is not None
        return replaced.donors_BTD
