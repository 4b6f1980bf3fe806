"""Cosine of a token to each patch before and after a norm."""

# Shapes: L blocks, P patches, D channels; h, w the patch grid.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.overlays.map_grid import MapGrid
from tokenlens.overlays.maps import cosine_map, photograph
from tokenlens.overlays.selection import (
    Token,
    block_of,
    block_titles,
    blocks_at,
    covered_by,
    image_title,
    layout_at,
    model_title,
    token_title,
    tokens_at,
)
from tokenlens.recording.recording import Recording
from tokenlens.tokens import Site

NORM_INPUTS = {Site.NORM1: Site.RESID_PRE, Site.NORM2: Site.RESID_MID, Site.FINAL_NORM: Site.RESID_POST}
"""The site whose tokens a norm takes in a pre-norm model; those of the final norm are the last block's."""

UNEXPLAINED = 1e-2
"""Largest share of a norm's output that its input may leave unexplained; rounding to bfloat16 leaves 1e-5."""


def before_and_after(recording: Recording, image: int, block: int, norm: str = Site.NORM1) -> tuple[Tensor, Tensor]:
    """Return the tokens of an image before and after a norm, (1, T, D) each.

    Args:
        recording: a recording with the norm and the site before it.
        image: index of the image.
        block: the block; ignored at ``final_norm``.
        norm: ``"norm1"``, ``"norm2"`` or ``"final_norm"``.

    Raises:
        LookupError: if either was not recorded, or the norm takes something else (in a post-norm block).
    """
    before = tokens_before(recording, image, block, norm)
    after = tokens_at(recording, image, block, norm)
    if not _is_norm_of(*(layout_at(recording, block, norm).patches_of(x)[0] for x in (before, after))):
        where = "" if norm == Site.FINAL_NORM else f" of block {block_of(recording, block)}"
        raise LookupError(
            f"{norm}{where} does not normalize {NORM_INPUTS[Site(norm)]} (as in post-norm models), so the tokens "
            "before it were not recorded"
        )
    return before, after


def tokens_before(recording: Recording, image: int, block: int, norm: str) -> Tensor:
    """Return the tokens at the site before a norm, (1, T, D), without the check of ``before_and_after``."""
    if norm not in NORM_INPUTS:
        raise LookupError(f"a norm is {', '.join(NORM_INPUTS)}, got {norm!r}")
    source = recording.blocks[-1] if norm == Site.FINAL_NORM else block
    return tokens_at(recording, image, source, NORM_INPUTS[Site(norm)])


def _is_norm_of(before_PD: Tensor, after_PD: Tensor) -> bool:
    """Return whether each channel of ``after`` is a linear function of the normalized ``before``."""
    x_PD, y_PD = before_PD.double(), after_PD.double()
    centred_PD = x_PD - x_PD.mean(-1, keepdim=True)
    y_PD = y_PD - y_PD.mean(0)
    for u_PD in (centred_PD, x_PD):  # LayerNorm, RMSNorm
        u_PD = u_PD / u_PD.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
        u_PD = u_PD - u_PD.mean(0)
        slope_D = (u_PD * y_PD).sum(0) / u_PD.square().sum(0).clamp(min=1e-30)
        if float((y_PD - slope_D * u_PD).square().sum()) <= UNEXPLAINED * float(y_PD.square().sum()):
            return True
    return False


def before_after_maps(
    recording: Recording, image: int = 0, blocks: Any = None, norm: str = Site.NORM1, token: Token = "cls"
) -> MapGrid:
    """Return the cosine of a token to each patch before (upper row) and after (lower row) a norm, block by block.

    Args:
        recording: a recording with the norm and the site before it.
        image: index of the image.
        blocks: as for ``select_blocks``; None for six of them, evenly spaced. Ignored at ``final_norm``.
        norm: ``"norm1"``, ``"norm2"`` or ``"final_norm"``.
        token: ``"cls"``, ``"reg0"``, … or a patch (row, column).

    Raises:
        LookupError: if the recording lacks something, or the norm takes something else (in a post-norm block).
    """
    chosen = blocks_at(recording, blocks, norm)
    pairs = [before_and_after(recording, image, block, norm) for block in chosen]
    maps_L2hw = np.stack(
        [
            [cosine_map(x, layout_at(recording, block, norm), token) for x in pair]
            for block, pair in zip(chosen, pairs, strict=True)
        ]
    )
    return before_after_grid(
        photograph(recording, image),
        maps_L2hw[:, 0],
        maps_L2hw[:, 1],
        block_titles(chosen, norm),
        norm=norm,
        token=token,
        image=image_title(recording, image),
        model=model_title(recording),
        covered=covered_by(recording),
    )


def before_after_grid(
    pixels: NDArray[Any],
    before_Lhw: NDArray[Any],
    after_Lhw: NDArray[Any],
    titles: Sequence[str],
    *,
    norm: str = Site.NORM1,
    token: Token = "cls",
    image: str = "",
    model: str = "",
    covered: tuple[float, float] | None = None,
) -> MapGrid:
    """Return the same maps from arrays: the photograph (H, W, 3) and the cosines (L, h, w), with a title per block."""
    maps = np.concatenate([before_Lhw, after_Lhw]).astype(np.float32)
    means = maps.reshape(len(maps), -1).mean(1)
    return MapGrid(
        image=image,
        model=model,
        photograph=pixels,
        maps=maps,
        titles=(*titles, *titles),
        columns=len(titles),
        rows=(f"before {norm}", f"after {norm}"),
        quantity=f"cosine to {token_title(token)}",
        signed=True,
        captions=tuple(signed_text(mean) for mean in means),
        covered=covered,
        note="under each map: mean over its patches",
    )


def signed_text(value: float) -> str:
    """Return a number with its sign and two decimals: ``+0.21``, ``−0.10``, and ``0.00`` without one."""
    text = f"{value:+.2f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")
