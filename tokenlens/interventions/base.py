"""The contract of a replacement: what takes the place of a group's tokens."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenlens.catalog import Catalog

replacements = Catalog("tokenlens.interventions", "replacement", base="Replacement")

NEEDS = frozenset({"statistics", "noise", "donors"})


@dataclass(frozen=True)
class Replaced:
    """The tokens at one site and block, and what a replacement can be computed from; None unless it is in ``needs``.

    Attributes:
        x_BTD: the tokens that arrive at the site.
        mean_TD: the mean over images, position by position for special tokens, over all patches for patches.
        sd_TD: the standard deviation per channel, likewise.
        noise_BTD: standard normal numbers, the same for an image at every site and block.
        donors_BTD: the untouched tokens of another image at this site and block.
    """

    x_BTD: Tensor
    mean_TD: Tensor | None = None
    sd_TD: Tensor | None = None
    noise_BTD: Tensor | None = None
    donors_BTD: Tensor | None = None


class Replacement(ABC):
    """A replacement of tokens. Each file of this folder defines one; the file name is its public name.

    Attributes:
        needs: which fields of ``Replaced`` are computed for it: ``"statistics"`` (one more pass over the images),
            ``"noise"``, ``"donors"``.
        unseen: why the model has never seen such tokens, or empty.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    unseen: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if unknown := cls.needs - NEEDS:
            raise ValueError(f"{cls.__name__} needs {sorted(unknown)}; it can need {', '.join(sorted(NEEDS))}")

    @abstractmethod
    def compute(self, replaced: Replaced) -> Tensor:
        """Return new tokens, (B, T, D) or (T, D); only those of the replaced group are used."""
