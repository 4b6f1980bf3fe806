"""The contract of a replacement: what takes the place of a group's tokens, and where."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tokenlens.catalog import Catalog
from tokenlens.interventions._hooks import Sites
from tokenlens.tokens import Site

replacements = Catalog("tokenlens.interventions", "replacement", base="Replacement")

NEEDS = frozenset({"statistics", "noise", "donors", "neurons"})


class Condition(NamedTuple):
    """One replacement of one group at one site of one block."""

    replace: str
    by: str
    site: Site
    block: int

    def key(self) -> tuple[str, str, str, int]:
        """Return the values of the columns that name it."""
        return self.replace, self.by, str(self.site), self.block


@dataclass(frozen=True)
class Given:
    """Inputs of a replacement; a field is None unless it is in ``needs``.

    Attributes:
        mean_TD: the mean over images at this site and block, position by position for special tokens, over all patches
            for patches (``"statistics"``).
        sd_TD: the standard deviation per channel, likewise.
        noise_BTD: standard normal numbers, the same for an image at every site and block.
        donors_BTD: the untouched tokens of another image at this site and block.
        neurons: of the MLP of each block up to this one, those with the largest mean activation at the replaced
            patches; empty if no image has such a patch.
    """

    mean_TD: Tensor | None = None
    sd_TD: Tensor | None = None
    noise_BTD: Tensor | None = None
    donors_BTD: Tensor | None = None
    neurons: Mapping[int, Tensor] | None = None


class Replacement(ABC):
    """A change of the model's tokens. Each file of this folder defines one; the file name is its public name.

    Attributes:
        needs: which fields of ``Given`` are computed for it. ``"statistics"`` and ``"neurons"`` take one more pass over
            the images.
        unseen: why the model has never seen such tokens, or empty.
        everywhere: whether it changes every image, also those without a token of the group.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    unseen: ClassVar[str] = ""
    everywhere: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if unknown := cls.needs - NEEDS:
            raise ValueError(f"{cls.__name__} needs {sorted(unknown)}; it can need {', '.join(sorted(NEEDS))}")

    @abstractmethod
    def check(self, sites: Sites, target: str, site: Site, block: int) -> None:
        """Raise LookupError with the reason if the model's tokens cannot be replaced so."""

    @abstractmethod
    def applied(
        self, sites: Sites, site: Site, block: int, chosen_BT: Tensor, given: Given
    ) -> AbstractContextManager[None]:
        """Return a context in which forward passes run with the replacement of the chosen tokens, by hooks alone."""


class TokenReplacement(Replacement):
    """A replacement of tokens at one site by others; a subclass computes them."""

    @abstractmethod
    def compute(self, x_BTD: Tensor, given: Given) -> Tensor:
        """Return new tokens, (B, T, D) or (T, D), for those that arrive; only those of the replaced group are used."""

    def check(self, sites: Sites, target: str, site: Site, block: int) -> None:
        """Raise LookupError if tokens cannot be replaced at this site."""
        sites.check(site, block)

    def applied(
        self, sites: Sites, site: Site, block: int, chosen_BT: Tensor, given: Given
    ) -> AbstractContextManager[None]:
        """Return a context in which the chosen tokens are those of ``compute``."""

        def change(x_BTD: Tensor) -> Tensor:
            return torch.where(chosen_BT.unsqueeze(-1), self.compute(x_BTD, given).to(x_BTD.dtype), x_BTD)

        return sites.at(site, block, change)
