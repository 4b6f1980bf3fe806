"""Replace tokens by Gaussian noise with their mean and standard deviation."""

from typing import ClassVar

from torch import Tensor

from tokenlens.interventions.base import Replaced, Replacement


class Noise(Replacement):
    """Gaussian noise, channel by channel with the mean and standard deviation of the group at this site and block.

    An image gets the same standard normal numbers in every condition.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"statistics", "noise"})

    def compute(self, replaced: Replaced) -> Tensor:
        """Return mean + sd · noise."""
        mean_TD, sd_TD, noise_BTD = replaced.mean_TD, replaced.sd_TD, replaced.noise_BTD
        assert mean_TD is not None
        assert sd_TD is not None
        assert noise_BTD is not None
        return mean_TD + sd_TD * noise_BTD
