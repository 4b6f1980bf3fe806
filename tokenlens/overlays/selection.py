"""Select images, blocks, tokens and heads of a recording, and name them."""

# Shapes: T tokens, D channels, H heads; X heads at q, k and v, 1 elsewhere.

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from tokenlens.recording.recording import Recording
from tokenlens.tokens import GROUP_TITLES, HEAD_SITES, Site, TokenLayout

Token = str | tuple[int, int]
"""``"cls"``, ``"dist"``, ``"reg0"``, ``"reg1"``, … or a patch as (row, column), counted from 0 at the top left.

``"cls"`` of a model with several class tokens, ``"cls0"``, ``"cls1"``, …, is their mean, as in the metrics.
"""

_PLURALS = {"reg": "registers", "patch": "patches", "summary": "summary tokens", "det": "detection tokens"}


def group_plural(group: str) -> str:
    """Return the display name of all tokens of a group: ``[CLS]``, ``registers``, ``patches``."""
    return _PLURALS.get(group, GROUP_TITLES.get(group, group))


def prefix_tokens(layout: TokenLayout) -> list[str]:
    """Return the names of the prefix tokens, CLS first: ``["cls", "reg0", "reg1"]``."""
    return [
        f"{group}{index}" if group == "reg" or len(positions) > 1 else group
        for group in layout.groups[:-1]
        for positions in [layout.positions(group)]
        for index in range(len(positions))
    ]


def position_of(layout: TokenLayout, token: Token) -> int:
    """Return the index of a token in the sequence.

    Raises:
        LookupError: if the model has no such token; the message lists those that it has.
    """
    rows, columns = layout.grid
    if isinstance(token, str):
        names = prefix_tokens(layout)
        if token in names:
            group = token.rstrip("0123456789")
            return layout.positions(group)[int(token[len(group) :] or 0)]
        prefix = ", ".join(names) or "no prefix token"
        raise LookupError(f"the model has no token {token!r}; it has {prefix} and patches {_patches_text(layout)}")
    if len(token) != 2 or not (0 <= token[0] < rows and 0 <= token[1] < columns):
        raise LookupError(f"a patch is {_patches_text(layout)}, got {tuple(token)}")
    return layout.patch_positions[int(token[0]) * columns + int(token[1])]


def positions_of(layout: TokenLayout, token: Token) -> tuple[int, ...]:
    """Return the indices of a token in the sequence: one, or those of all class tokens for ``"cls"``.

    Raises:
        LookupError: if the model has no such token; the message lists those that it has.
    """
    return layout.positions("cls") if token == "cls" and layout.has("cls") else (position_of(layout, token),)


def _patches_text(layout: TokenLayout) -> str:
    return f"(row, column) with row 0 to {layout.grid[0] - 1} and column 0 to {layout.grid[1] - 1}"


def token_title(token: Token) -> str:
    """Return the display name of a token: ``[CLS]``, ``register 0``, ``patch (3, 5)``."""
    if not isinstance(token, str):
        return f"patch ({token[0]}, {token[1]})"
    group = token.rstrip("0123456789")
    return f"{GROUP_TITLES.get(group, group)} {token[len(group) :]}".strip()


def block_of(recording: Recording, block: int) -> int:
    """Return the number of a recorded block; negative numbers count from the last recorded one.

    Raises:
        LookupError: if the block was not recorded.
    """
    blocks = recording.blocks
    if block in blocks:
        return block
    if -len(blocks) <= block < 0:
        return blocks[block]
    several = len(blocks) > 1 and list(blocks) == list(range(blocks[0], blocks[-1] + 1))
    known = f"{blocks[0]} to {blocks[-1]}" if several else ", ".join(map(str, blocks))
    raise LookupError(f"there is no block {block}: recorded, and counted from 0, are {known}")


def select_blocks(recording: Recording, blocks: Any = None, most: int = 6) -> list[int]:
    """Return the numbers of chosen blocks.

    Args:
        recording: the recording.
        blocks: a number, a list, or text as for ``numbers_in``; negative numbers count from the last recorded block.
            None for ``most`` of them, evenly spaced, the first and the last among them.
        most: number of blocks that are chosen by default.

    Raises:
        LookupError: if a block was not recorded.
        ValueError: for a text that cannot be read.
    """
    if blocks is None:
        return evenly_spaced(recording.blocks, most)
    if isinstance(blocks, str):
        blocks = numbers_in(blocks)
    chosen = blocks if isinstance(blocks, Iterable) else [blocks]
    return list(dict.fromkeys(block_of(recording, int(block)) for block in chosen))


def evenly_spaced(blocks: Sequence[int], most: int = 6) -> list[int]:
    """Return at most ``most`` blocks, evenly spaced from the first to the last.

    >>> evenly_spaced(range(12))
    [0, 2, 4, 7, 9, 11]
    """
    last, count = len(blocks) - 1, min(most, len(blocks))
    return [blocks[round(index * last / max(count - 1, 1))] for index in range(count)]


def blocks_at(recording: Recording, blocks: Any, site: str) -> list[int]:
    """Return the blocks whose tokens at a site are drawn, as ``select_blocks`` does; one for the final norm."""
    return [recording.blocks[-1]] if site == Site.FINAL_NORM else select_blocks(recording, blocks)


def site_text(recording: Recording, block: int, site: str) -> str:
    """Return block and site for a header; the final norm belongs to no block."""
    return str(site) if site == Site.FINAL_NORM else f"block {block_of(recording, block)} · {site}"


def head_text(site: str, head: int | None, all_heads: str = "mean over heads") -> str:
    """Return which head of a site is shown, for a header; empty where there are no heads."""
    if site not in HEAD_SITES:
        return ""
    return all_heads if head is None else f"head {head}"


def block_titles(blocks: Sequence[int], site: str) -> list[str]:
    """Return the titles of maps at a site of these blocks."""
    return ["the model"] if site == Site.FINAL_NORM else [f"block {block}" for block in blocks]


def image_count(recording: Recording) -> int:
    """Return the number of recorded images."""
    return 0 if recording.images is None else len(recording.images)


def numbers_in(text: str) -> list[int]:
    """Return the numbers in a text.

    Raises:
        ValueError: if it cannot be read.

    >>> numbers_in("0-2,11"), numbers_in("-1")
    ([0, 1, 2, 11], [-1])
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or (match[2] and int(match[1]) > int(match[2])):
            raise ValueError(f"expected numbers like 0-5,11, got {text!r}")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return numbers


def covered_by(recording: Recording) -> tuple[float, float]:
    """Return the height and width in pixels that the patches of the recorded images cover."""
    assert recording.images is not None
    return recording.layout.extent((recording.images.shape[-2], recording.images.shape[-1]))


def layout_at(recording: Recording, block: int, site: str | None = None) -> TokenLayout:
    """Return the tokens at a site of a block, which may be fewer than those at the end of the model (CaiT)."""
    return recording.layout_of(None if site == Site.FINAL_NORM else block_of(recording, block))


def check_image(recording: Recording, image: int) -> None:
    """Raise LookupError unless the recording has the image."""
    count = image_count(recording)
    if not 0 <= image < count:
        raise LookupError(f"the recording has images 0 to {count - 1}, got {image}")


def tokens_at(recording: Recording, image: int, block: int, site: str, head: int | None = None) -> Tensor:
    """Return the tokens of one image at a site, float32 (X, T, D), where X is 1 except at q, k and v.

    Args:
        recording: the recording.
        image: index of the image.
        block: the block; ignored at ``final_norm``.
        site: a value of ``Site``.
        head: one head at q, k or v; None for all. Must be None at other sites.

    Raises:
        LookupError: if it was not recorded or does not exist.
    """
    check_image(recording, image)
    if site not in set(Site):
        raise LookupError(f"unknown site {site!r}; sites are {', '.join(Site)}")
    key = None if site == Site.FINAL_NORM else block_of(recording, block)
    if (key, site) not in recording:
        owner = "the model" if key is None else f"block {key}"
        recorded = ", ".join(s for s in Site if (key, s) in recording) or "none"
        raise LookupError(f"{site} of {owner} was not recorded; recorded sites there: {recorded}")
    x = recording[key, site][image].float()
    if site not in HEAD_SITES:
        if head is not None:
            raise LookupError(f"tokens have heads at q, k and v only; leave out head at {site} (got {head})")
        return x[None]
    return x if head is None else x[checked_head(head, len(x))][None]


def checked_head(head: int, heads: int) -> int:
    """Return the head; raise LookupError unless there is such a one among ``heads``."""
    if not 0 <= head < heads:
        raise LookupError(f"the block has heads 0 to {heads - 1}, got {head}")
    return head


def attention_by_head(recording: Recording, image: int, block: int, token: Token) -> Tensor:
    """Return the attention of one token to all tokens, (H, T), whose rows sum to 1.

    Raises:
        LookupError: if the attention of the block was not recorded, or there is no such token.
    """
    check_image(recording, image)
    positions = positions_of(layout_at(recording, block), token)
    return recording.attention_rows(block_of(recording, block), image, positions).mean(1)


def attention_of(recording: Recording, image: int, block: int, token: Token, head: int | None = None) -> Tensor:
    """Return the attention of one token to all tokens, (T,), which sums to 1, for one head or averaged over heads.

    Raises:
        LookupError: if the attention of the block was not recorded, or there is no such head or token.
    """
    row_HT = attention_by_head(recording, image, block, token)
    return row_HT.mean(0) if head is None else row_HT[checked_head(head, len(row_HT))]


def image_title(recording: Recording, image: int) -> str:
    """Return the name of an image in its source, or its index."""
    return recording.names[image] if recording.names else f"image {image}"


def model_title(recording: Recording) -> str:
    """Return the model's full name, followed by "(untrained)" if its weights are random."""
    return recording.model + (" (untrained)" if recording.untrained else "")
