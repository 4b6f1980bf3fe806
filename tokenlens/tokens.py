"""Which token is which: CLS, distillation token, registers and the patch grid."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch
from torch import Tensor

GROUPS = ("cls", "dist", "reg", "patch")
"""The token groups. The first three together are the prefix tokens."""

GROUP_TITLES = {"cls": "[CLS]", "dist": "distillation", "reg": "register", "patch": "patch"}


@dataclass(frozen=True)
class TokenLayout:
    """The position of every token group in a model's token sequence, and the patch grid.

    Args:
        grid: rows and columns of the patch grid.
        prefix: the group of each token that is not a patch, in sequence order, e.g. ``("cls", "reg", "reg")``.
            Token 0 is not always CLS: a model may have registers only, or no prefix token at all.
        patch_start: position of the first patch; the patches form one run of ``rows * columns`` tokens. By
            default they follow the prefix tokens. A model that appends its CLS token has ``patch_start=0``.

    Raises:
        ValueError: for an empty grid, an unknown group, or a ``patch_start`` outside the prefix.

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
        """How many patch tokens there are."""
        return self.grid[0] * self.grid[1]

    @cached_property
    def tokens(self) -> int:
        """How many tokens there are in all."""
        return len(self.prefix) + self.patches

    @cached_property
    def patch_slice(self) -> slice:
        """The run of positions that the patches take, in row-major order of the grid."""
        return slice(self._start, self._start + self.patches)

    @cached_property
    def prefix_positions(self) -> tuple[int, ...]:
        """Positions of the prefix tokens, in sequence order (the order of ``prefix``)."""
        return tuple(range(self._start)) + tuple(range(self._start + self.patches, self.tokens))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The groups this model has, in the order of ``GROUPS``."""
        return tuple(group for group in GROUPS if self.has(group))

    def has(self, group: str) -> bool:
        """Whether the model has a token of this group."""
        return group == "patch" or group in self.prefix

    def positions(self, group: str) -> tuple[int, ...]:
        """Sequence positions of one group's tokens; empty where the model has none."""
        if group == "patch":
            return tuple(range(self.tokens))[self.patch_slice]
        return tuple(self.prefix_positions[index] for index in self.prefix_index(group))

    def prefix_index(self, group: str) -> tuple[int, ...]:
        """Indices of one group among the prefix tokens (not among all tokens)."""
        return tuple(index for index, member in enumerate(self.prefix) if member == group)

    def patches_of(self, x: Tensor, dim: int = -2) -> Tensor:
        """The patch tokens of ``x`` (..., T, D) as a view (..., P, D)."""
        return x.narrow(dim, self._start, self.patches)

    def prefix_of(self, x: Tensor) -> Tensor:
        """The prefix tokens of ``x`` (..., T, D) as (..., R, D)."""
        return take(x, self.prefix_positions, -2)

    def check(self, tokens: int) -> None:
        """Raise ValueError if a sequence of this many tokens does not fit the layout."""
        if tokens != self.tokens:
            prefix = " + ".join(self.prefix) or "no prefix token"
            raise ValueError(
                f"the model's sequence has {tokens} tokens, but its family expected {self.tokens}: {prefix} and "
                f"{self.grid[0]}×{self.grid[1]} patches. Counting tokens wrongly would mix CLS and patches, so the "
                "analysis stops here; hand over a Family whose layout() fits this model (docs/add-a-family.md)."
            )


def take(x: Tensor, indices: tuple[int, ...], dim: int) -> Tensor:
    """Some places of one axis: a view where they lie side by side, as they nearly always do, else a copy."""
    if not indices or indices[-1] - indices[0] + 1 == len(indices):
        return x.narrow(dim, indices[0] if indices else 0, len(indices))
    return x.index_select(dim, torch.tensor(indices, device=x.device))


class Site(StrEnum):
    """A place in a block where tokens are observed; ``final_norm`` belongs to the model."""

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


NORM_SITES = (Site.NORM1, Site.NORM2, Site.FINAL_NORM)


TOKEN_SITES = tuple(site for site in Site if site not in HEAD_SITES)
"""Sites whose tensor is (B, T, D)."""


Key = tuple[int | None, str]
