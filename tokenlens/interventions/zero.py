"""Replace tokens by zeros."""

from typing import ClassVar

import torch
from torch import Tensor

from tokenlens.interventions.base import Given, TokenReplacement


class Zero(TokenReplacement):
    """The zero vector.

    Reference: arXiv 2604.14433 finds that zeroing CLS costs 37 points of segmentation in models without registers,
    where the mean, noise and shuffled tokens cost less than one.
    """

    unseen: ClassVar[str] = "a token of zeros is outside everything that the model has seen"

    def compute(self, x_BTD: Tensor, given: Given) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(x_BTD)
