"""Replace tokens by Gaussian noise with their mean and standard deviation."""

from typing import ClassVar

from torch import Tensor

from tokenlens.interventions.base import Given, TokenReplacement


class Noise(TokenReplacement):
    """Gaussian noise, channel by channel with the mean and standard deviation of the group at this site and block.

    An image gets the same standard normal numbers in every condition.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"statistics", "noise"})

    def compute(self, x_BTD: Tensor, given: Given) -> Tensor:
        """Return mean + sd · noise."""
        assert given.mean_TD is not None
        assert given.sd_TD is not None
        assert given.noise_BTD is not None
        return given.mean_TD + given.sd_TD * given.noise_BTD
