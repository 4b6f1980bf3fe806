"""Maps of one image side by side: through the blocks, or for all heads of a block."""

# Shapes: N maps, T tokens, D channels, X heads at q, k and v and 1 elsewhere; h, w the patch grid.

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenlens.metrics.token_norm import HIGH_NORM_RATIO
from tokenlens.overlays.before_after import signed_text
from tokenlens.overlays.map_grid import MapGrid
from tokenlens.overlays.maps import attention_map, cosine_map, norm_map, photograph
from tokenlens.overlays.selection import (
    Token,
    attention_by_head,
    block_of,
    block_titles,
    blocks_at,
    checked_head,
    covered_by,
    head_text,
    image_title,
    layout_at,
    model_title,
    numbers_in,
    token_title,
    tokens_at,
)
from tokenlens.recording.recording import Recording
from tokenlens.tokens import Site


def cosine_maps(
    recording: Recording,
    image: int = 0,
    blocks: Any = None,
    site: str = Site.RESID_POST,
    token: Token = "cls",
    head: int | None = None,
) -> MapGrid:
    """Return the cosine of a token to each patch at a site, block by block.

    Args:
        recording: a recording with the site.
        image: index of the image.
        blocks: as for ``select_blocks``; None for six of them, evenly spaced. Ignored at ``final_norm``.
        site: the site of the tokens.
        token: ``"cls"``, ``"reg0"``, … or a patch (row, column).
        head: one head at q, k and v; None for the mean of the heads' cosines.

    Raises:
        LookupError: if the recording lacks something.
    """
    chosen = blocks_at(recording, blocks, site)
    maps = [
        cosine_map(tokens_at(recording, image, block, site, head), layout_at(recording, block, site), token)
        for block in chosen
    ]
    return _grid(
        recording,
        image,
        maps,
        block_titles(chosen, site),
        quantity=f"cosine to {token_title(token)}",
        signed=True,
        captions=tuple(signed_text(float(map_hw.mean())) for map_hw in maps),
        note=f"{_note(site, head)} · under each map: mean over its patches",
    )


def norm_maps(
    recording: Recording, image: int = 0, blocks: Any = None, site: str = Site.RESID_POST, head: int | None = None
) -> MapGrid:
    """Return the norm of each patch over the median of the image at a site, block by block; high norms are outlined.

    Args:
        recording: a recording with the site.
        image: index of the image.
        blocks: as for ``select_blocks``; None for six of them, evenly spaced. Ignored at ``final_norm``.
        site: the site of the tokens.
        head: one head at q, k and v; None for the mean of the heads' norms.

    Raises:
        LookupError: if the recording lacks something.
    """
    chosen = blocks_at(recording, blocks, site)
    found = [
        norm_map(tokens_at(recording, image, block, site, head), layout_at(recording, block, site)) for block in chosen
    ]
    medians = [norms.threshold / HIGH_NORM_RATIO for norms in found]
    captions = [
        f"median {middle:.3g}\n{int(norms.high_hw.sum())} high" for norms, middle in zip(found, medians, strict=True)
    ]
    return _grid(
        recording,
        image,
        [norms.norms_hw / max(middle, 1e-30) for norms, middle in zip(found, medians, strict=True)],
        block_titles(chosen, site),
        quantity="‖x‖ / median patch",
        captions=tuple(captions),
        outlined=np.stack([norms.high_hw for norms in found]),
        note=f"{_note(site, head)} · outlined (high): above {HIGH_NORM_RATIO:g} × the median patch norm of the image",
    )


def attention_maps(
    recording: Recording, image: int = 0, block: int = -1, token: Token = "cls", heads: Any = None
) -> MapGrid:
    """Return the attention of a token to each patch, divided by its mean over patches, head by head.

    Args:
        recording: a recording with q and k, or with patterns.
        image: index of the image.
        block: the block; negative numbers count from the last recorded one.
        token: ``"cls"``, ``"reg0"``, … or a patch (row, column).
        heads: heads as a number, a list or text like ``"0-2,5"``; None for the mean over heads and all of them.

    Raises:
        LookupError: if the recording lacks something.
    """
    number = block_of(recording, block)
    layout = layout_at(recording, number)
    row_HT = attention_by_head(recording, image, number, token)
    if heads is None:
        chosen: list[int | None] = [None, *range(len(row_HT))]
    else:
        given = numbers_in(heads) if isinstance(heads, str) else heads if isinstance(heads, Iterable) else [heads]
        chosen = [int(head) for head in given]
    rows = [row_HT.mean(0) if head is None else row_HT[checked_head(head, len(row_HT))] for head in chosen]
    to_patches = [float(layout.patches_of(row_T, -1).sum()) for row_T in rows]
    return _grid(
        recording,
        image,
        [attention_map(row_T, layout) for row_T in rows],
        ["mean" if head is None else f"head {head}" for head in chosen],
        columns=_columns(len(chosen)),
        quantity="attention, × uniform",
        captions=tuple(f"{100 * share:.0f} %" for share in to_patches),
        note=f"attention of {token_title(token)} in block {number} · × uniform: divided by its mean over patches · "
        "under each map: the share of attention that goes to patches",
    )


def _columns(count: int) -> int:
    """Return how many maps stand side by side, so that the rows are as even as possible."""
    return -(-count // -(-count // 7))


def _grid(
    recording: Recording, image: int, maps: list[NDArray[np.float32]], titles: list[str], **options: Any
) -> MapGrid:
    return MapGrid(
        image=image_title(recording, image),
        model=model_title(recording),
        photograph=photograph(recording, image),
        maps=np.stack(maps),
        titles=tuple(titles),
        covered=covered_by(recording),
        **{"columns": len(maps), **options},
    )


def _note(site: str, head: int | None) -> str:
    return " · ".join(filter(None, [str(site), head_text(site, head)]))
