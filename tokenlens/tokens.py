"""Token groups, their positions in the sequence, and the sites at which tokens are observed."""

# Shapes: T tokens, P patches, R prefix tokens, D channels.

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch
from torch import Tensor

GROUPS = ("cls", "dist", "reg", "patch")
"""The token groups; all but ``patch`` are the special tokens, which the code calls prefix tokens."""

GROUP_TITLES = {"cls": "[CLS]", "dist": "distillation", "reg": "register", "patch": "patch"}


@dataclass(frozen=True)
class TokenLayout:
    """The position of every token group in a model's token sequence, and the patch grid.

    The special tokens (all that are not patches) are called prefix tokens, although some or all of them may follow the
    patches. Token 0 is not always CLS: a model may have only registers, or no special tokens.

    Args:
        grid: rows and columns of the patch grid.
        prefix: the group of each special token in sequence order, e.g. ``("cls", "reg", "reg")``.
        patch_start: position of the first of the ``rows * columns`` consecutive patches. By default they follow the
            special tokens; a model that appends its CLS token has ``patch_start=0``.

    Raises:
        ValueError: for an empty grid, an unknown group, or a ``patch_start`` beyond the number of special tokens.

    >>> layout = TokenLayout(grid=(14, 14), prefix=("cls", "dist"))
    >>> layout.tokens, layout.positions("dist"), layout.patch_slice
    (198, (1,), slice(2, 198, None))
    """

    grid: tuple[int, int]
    prefix: tuple[str, ...] = ("cls",)
    patch_start: int | None = None

    def __post_init__(self) -> None:
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"a patch grid has at least one row and one column, got {self.grid}")
        unknown = set(self.prefix) - {"cls", "dist", "reg"}
        if unknown:
            raise ValueError(f"prefix tokens belong to cls, dist or reg, got {sorted(unknown)}")
        if self.prefix.count("cls") > 1:
            raise ValueError("a layout has at most one CLS token")
        if self.patch_start is None:
            object.__setattr__(self, "patch_start", len(self.prefix))
        if not 0 <= self._start <= len(self.prefix):
            raise ValueError(f"patch_start must lie between 0 and {len(self.prefix)}, got {self.patch_start}")

    @property
    def _start(self) -> int:
        assert self.patch_start is not None
        return self.patch_start

    @cached_property
    def patches(self) -> int:
        """Number of patch tokens."""
        return self.grid[0] * self.grid[1]

    @cached_property
    def tokens(self) -> int:
        """Number of all tokens."""
        return len(self.prefix) + self.patches

    @cached_property
    def patch_slice(self) -> slice:
        """Positions of the patches, in row-major order of the grid."""
        return slice(self._start, self._start + self.patches)

    @cached_property
    def prefix_positions(self) -> tuple[int, ...]:
        """Positions of the special tokens, in the order of ``prefix``."""
        return tuple(range(self._start)) + tuple(range(self._start + self.patches, self.tokens))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Groups with at least one token, in the order of ``GROUPS``."""
        return tuple(group for group in GROUPS if self.has(group))

    def has(self, group: str) -> bool:
        """Return whether there is a token of this group."""
        return group == "patch" or group in self.prefix

    def positions(self, group: str) -> tuple[int, ...]:
        """Return the sequence positions of one group's tokens, which may be none."""
        if group == "patch":
            return tuple(range(self.tokens))[self.patch_slice]
        return tuple(self.prefix_positions[index] for index in self.prefix_index(group))

    def prefix_index(self, group: str) -> tuple[int, ...]:
        """Return the indices of one group's tokens within ``prefix``."""
        return tuple(index for index, member in enumerate(self.prefix) if member == group)

    def patches_of(self, x: Tensor, dim: int = -2) -> Tensor:
        """Return the patch tokens of ``x`` (..., T, D) as a view (..., P, D)."""
        return x.narrow(dim, self._start, self.patches)

    def check(self, tokens: int) -> None:
        """Raise ValueError if a sequence does not have the layout's number of tokens."""
        if tokens != self.tokens:
            prefix = " + ".join(self.prefix) or "no prefix token"
            raise ValueError(
                f"the model's sequence has {tokens} tokens, but its family expected {self.tokens}: {prefix} and "
                f"{self.grid[0]}×{self.grid[1]} patches. A wrong count would mix CLS and patches; pass a Family whose "
                "layout() fits this model (docs/add-a-family.md)."
            )


def take(x: Tensor, indices: tuple[int, ...], dim: int) -> Tensor:
    """Select indices of one axis: a view where they are consecutive, as they nearly always are, else a copy."""
    if not indices or indices[-1] - indices[0] + 1 == len(indices):
        return x.narrow(dim, indices[0] if indices else 0, len(indices))
    return x.index_select(dim, torch.tensor(indices, device=x.device))


class Site(StrEnum):
    """A point in a block at which tokens are observed; ``final_norm`` belongs to the model."""

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


HEAD_SITES = (Site.Q, Site.K, Site.V)
"""Sites whose tensor is (images, heads, tokens, channels per head)."""

NORM_SITES = (Site.NORM1, Site.NORM2, Site.FINAL_NORM)

TOKEN_SITES = tuple(site for site in Site if site not in HEAD_SITES)
"""Sites whose tensor is (images, tokens, channels)."""

Key = tuple[int | None, str]
"""Block, None for the model's final norm, and site."""
