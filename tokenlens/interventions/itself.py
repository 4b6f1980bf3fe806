"""Replace tokens by themselves, which changes nothing."""

from torch import Tensor

from tokenlens.interventions.base import Replaced, Replacement


class Itself(Replacement):
    """The tokens themselves, which must have no effect at all: a check of a model that tokenlens does not know."""

    def compute(self, replaced: Replaced) -> Tensor:
        """Return the tokens."""
        return replaced.x_BTD
