"""Token groups, their positions in the sequence, and the sites at which tokens are observed."""

# Shapes: T tokens, P patches, R special tokens, D channels.

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

GROUPS = ("cls", "dist", "reg", "patch")
"""The usual token groups; all but ``patch`` are the special tokens, which the code calls prefix tokens.

A family may add groups under names of its own.
"""

GROUP_TITLES = {
    "cls": "[CLS]",
    "dist": "distillation",
    "reg": "register",
    "summary": "summary",
    "det": "detection",
    "patch": "patch",
    "bias": "attention bias",
}
"""Display names of single tokens; a group that is not here is shown under its own name."""


@dataclass(frozen=True)
class TokenLayout:
    """The position of every token group in a model's token sequence, and the patch grid.

    The special tokens (all that are not patches) are called prefix tokens, although some or all of them may stand
    behind or between the patches. Token 0 is not always CLS: a model may have only registers, or no special tokens.

    A group may have several tokens, ``cls`` too (one class token per class, or a wide CLS in several parts). A number
    that concerns CLS is then the mean over the class tokens of the image.

    Args:
        grid: rows and columns of the patch grid.
        prefix: the group of each special token in sequence order, e.g. ``("cls", "reg", "reg")``.
        patch_start: position of the first of the ``rows * columns`` consecutive patches. By default they follow the
            special tokens; a model that appends its CLS token has ``patch_start=0``.
        prefix_positions: instead of ``patch_start``, the position of each special token, ascending, where some of them
            stand between patches; see ``from_positions``.
        patch_size: height and width of a patch in pixels of the image; None if unknown, which is taken as
            ``image size / grid``.
        attention_bias: whether every attention has a learned key and value beside those of the tokens. It is no token;
            attention to it is that to the source ``bias``.

    Raises:
        ValueError: for an empty grid, a group name that cannot be used, or positions outside the sequence.

    >>> layout = TokenLayout(grid=(14, 14), prefix=("cls", "dist"))
    >>> layout.tokens, layout.positions("dist"), layout.patch_slice
    (198, (1,), slice(2, 198, None))
    """

    grid: tuple[int, int]
    prefix: tuple[str, ...] = ("cls",)
    patch_start: InitVar[int | None] = None
    prefix_positions: tuple[int, ...] = ()
    patch_size: tuple[int, int] | None = None
    attention_bias: bool = False

    def __post_init__(self, patch_start: int | None) -> None:
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"a patch grid has at least one row and one column, got {self.grid}")
        for group in self.prefix:
            if group in ("patch", "bias") or not re.fullmatch(r"[a-z_]+", group):
                raise ValueError(
                    "a group of special tokens has a name of lower-case letters other than patch and bias (cls, dist, "
                    f"reg, summary, …), got {group!r}"
                )
        special = len(self.prefix)
        if not self.prefix_positions:
            start = special if patch_start is None else patch_start
            if not 0 <= start <= special:
                raise ValueError(f"patch_start must lie between 0 and {special}, got {start}")
            positions = (*range(start), *range(start + self.patches, self.tokens))
            object.__setattr__(self, "prefix_positions", positions)
        elif patch_start is not None:
            raise ValueError("a layout takes patch_start or prefix_positions, not both")
        positions = self.prefix_positions
        if list(positions) != sorted(set(positions) & set(range(self.tokens))) or len(positions) != special:
            raise ValueError(
                f"prefix_positions must be ascending, from 0 to {self.tokens - 1}, and one for each of the {special} "
                f"special tokens, got {positions}"
            )

    @classmethod
    def from_positions(
        cls, grid: tuple[int, int], positions: Mapping[str, Iterable[int]], patch_size: tuple[int, int] | None = None
    ) -> TokenLayout:
        """Return the layout of groups of any number of tokens at any position; all other positions are patches.

        >>> TokenLayout.from_positions((2, 2), {"cls": [2], "det": [5, 6]}).positions("patch")
        (0, 1, 3, 4)
        """
        places = sorted((position, group) for group, several in positions.items() for position in several)
        return cls(
            grid,
            tuple(group for _, group in places),
            prefix_positions=tuple(position for position, _ in places),
            patch_size=patch_size,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenLayout:
        """Return the layout of what ``dataclasses.asdict`` returned; JSON turns tuples into lists."""
        given: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
        return cls(**given)

    @cached_property
    def patches(self) -> int:
        """Number of patch tokens."""
        return self.grid[0] * self.grid[1]

    @cached_property
    def tokens(self) -> int:
        """Number of all tokens."""
        return len(self.prefix) + self.patches

    @cached_property
    def patch_positions(self) -> tuple[int, ...]:
        """Positions of the patches, in row-major order of the grid."""
        special = set(self.prefix_positions)
        return tuple(position for position in range(self.tokens) if position not in special)

    @cached_property
    def contiguous(self) -> bool:
        """Whether no special token stands between two patches."""
        return self.patch_positions[-1] - self.patch_positions[0] + 1 == self.patches

    @cached_property
    def patch_slice(self) -> slice:
        """Positions of the patches, in row-major order of the grid.

        Raises:
            ValueError: if special tokens stand between them; use ``patch_positions`` or ``patches_of``.
        """
        if not self.contiguous:
            raise ValueError("the patches of this model are not one slice: special tokens stand between them")
        return slice(self.patch_positions[0], self.patch_positions[-1] + 1)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Groups with at least one token: those of ``GROUPS`` in their order, others as they occur, patches last."""
        usual = [group for group in GROUPS if group in self.prefix]
        return tuple(dict.fromkeys([*usual, *self.prefix, "patch"]))

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources of attention: the token groups, and ``bias`` if there is an attention bias."""
        return self.groups + ("bias",) * self.attention_bias

    @property
    def prefix_text(self) -> str:
        """The number of tokens of each group of special tokens: ``"cls, 4 × reg"``; empty without any."""
        counts = [(self.prefix.count(group), group) for group in self.groups[:-1]]
        return ", ".join(group if count == 1 else f"{count} × {group}" for count, group in counts)

    def has(self, group: str) -> bool:
        """Return whether there is a token of this group."""
        return group == "patch" or group in self.prefix

    def positions(self, group: str) -> tuple[int, ...]:
        """Return the sequence positions of one group's tokens, which may be none."""
        if group == "patch":
            return self.patch_positions
        return tuple(self.prefix_positions[index] for index in self.prefix_index(group))

    def prefix_index(self, group: str) -> tuple[int, ...]:
        """Return the indices of one group's tokens within ``prefix``."""
        return tuple(index for index, member in enumerate(self.prefix) if member == group)

    def patches_of(self, x: Tensor, dim: int = -2) -> Tensor:
        """Return the patch tokens of ``x`` (..., T, D), (..., P, D): a view unless special tokens stand between."""
        return take(x, self.patch_positions, dim)

    def mean_of(self, x: Tensor, group: str, dim: int = -2) -> Tensor:
        """Return the mean over the tokens of one group of ``x`` (..., T, D), (..., D): the token if it is one."""
        return take(x, self.positions(group), dim).mean(dim)

    def extent(self, image_size: tuple[int, int]) -> tuple[float, float]:
        """Return height and width in pixels of the grid, whose first patch is at the top left of the image.

        It is smaller than the image where the model drops the rest, and larger where the model pads the image.
        """
        if self.patch_size is None:
            return image_size
        return self.grid[0] * self.patch_size[0], self.grid[1] * self.patch_size[1]

    def border_note(self, image_size: tuple[int, int]) -> str:
        """Return a sentence on what the model drops or pads of an image of (height, width); empty if nothing.

        >>> TokenLayout((14, 14), patch_size=(16, 16)).border_note((239, 224))
        '14×14 patches of 16×16 pixels cover 224×224 of 239×224 pixels: 15 rows at the bottom are dropped.'
        """
        parts = []
        for name, where, covered, given in zip(
            ("row", "column"), ("at the bottom", "on the right"), self.extent(image_size), image_size, strict=True
        ):
            if covered != given:
                count = abs(round(given - covered))
                many, what = ("s", "are") if count > 1 else ("", "is")
                parts.append(f"{count} {name}{many} {where} {what} {'dropped' if covered < given else 'padding'}")
        if not parts:
            return ""
        grid, patch, covered_size, given_size = (
            f"{round(rows)}×{round(columns)}"
            for rows, columns in (self.grid, self.patch_size or (0, 0), self.extent(image_size), image_size)
        )
        return f"{grid} patches of {patch} pixels cover {covered_size} of {given_size} pixels: {' and '.join(parts)}."

    def check(self, tokens: int) -> None:
        """Raise ValueError if a sequence does not have the layout's number of tokens."""
        if tokens != self.tokens:
            raise ValueError(
                f"the model's sequence has {tokens} tokens, but its family expected {self.tokens}: "
                f"{self.prefix_text or 'no prefix token'} and "
                f"{self.grid[0]}×{self.grid[1]} patches. A wrong count would mix CLS and patches; pass a Family whose "
                "layout() fits this model (docs/add-a-family.md)."
            )


def take(x: Tensor, indices: tuple[int, ...], dim: int) -> Tensor:
    """Select indices of one axis: a view where they are consecutive, as they nearly always are, else a copy."""
    if not indices or indices[-1] - indices[0] + 1 == len(indices):
        return x.narrow(dim, indices[0] if indices else 0, len(indices))
    return x.index_select(dim, torch.tensor(indices, device=x.device))


class Site(StrEnum):
    """A point in a block at which tokens are observed; ``final_norm`` and ``pool`` belong to the model.

    ``pool`` is the latent that pools the tokens by attention (a MAP head), where a model has one.
    """

    RESID_PRE = "resid_pre"
    NORM1 = "norm1"
    Q = "q"
    K = "k"
    V = "v"
    ATTN_OUT = "attn_out"
    RESID_MID = "resid_mid"
    NORM2 = "norm2"
    MLP_OUT = "mlp_out"
    RESID_POST = "resid_post"
    FINAL_NORM = "final_norm"
    POOL = "pool"


RESIDUAL_SITES = (Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST)

HEAD_SITES = (Site.Q, Site.K, Site.V)
"""Sites whose tensor is (images, heads, tokens, channels per head)."""

NORM_SITES = (Site.NORM1, Site.NORM2, Site.FINAL_NORM)

TOKEN_SITES = tuple(site for site in Site if site not in (*HEAD_SITES, Site.POOL))
"""Sites whose tensor is (images, tokens, channels)."""

Key = tuple[int | None, str]
"""Block, None for the model's final norm and pooling, and site."""
