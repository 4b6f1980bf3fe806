"""Replace tokens by themselves, which changes nothing."""

from torch import Tensor

from tokenlens.interventions.base import Given, TokenReplacement


class Itself(TokenReplacement):
    """The tokens themselves, which must have no effect at all: a check of a model that tokenlens does not know."""

    def compute(self, x_BTD: Tensor, given: Given) -> Tensor:
        """Return the tokens."""
        return x_BTD
