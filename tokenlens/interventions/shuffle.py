"""Replace tokens by those of another image."""

from typing import ClassVar

from torch import Tensor

from tokenlens.interventions.base import Given, TokenReplacement


class Shuffle(TokenReplacement):
    """The same tokens of another image: of the one before, in one cycle through all images in seeded order."""

    needs: ClassVar[frozenset[str]] = frozenset({"donors"})

    def compute(self, x_BTD: Tensor, given: Given) -> Tensor:
        """Return the other images' tokens."""
        assert given.donors_BTD is not None
        return given.donors_BTD
