"""Maps through the blocks, or of all heads, beside the photograph: numbers from ``tokenlens.overlays``, drawn here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from tokenlens.figures.photographs.grids import draw_maps
from tokenlens.overlays.before_after import before_after_maps
from tokenlens.overlays.block_maps import attention_maps, cosine_maps, norm_maps
from tokenlens.overlays.components import component_grids
from tokenlens.overlays.selection import Token, image_count
from tokenlens.recording.recording import Recording
from tokenlens.tokens import Site

Images = int | Sequence[int] | None
"""An image, several, or None for all; several are drawn below each other on one scale."""


def before_after(
    recording: Recording,
    image: Images = 0,
    blocks: Any = None,
    norm: str = Site.NORM1,
    token: Token = "cls",
    **options: Any,
) -> Figure:
    """Draw the cosine of a token to each patch before and after a norm, block by block.

    Args:
        recording: a recording with the norm and the site before it.
        image: index of the image, several, or None for all.
        blocks: a number, a list, or text like ``"0-5,11"``; None for six of them, evenly spaced.
        norm: ``"norm1"``, ``"norm2"`` or ``"final_norm"``.
        token: ``"cls"``, ``"reg0"``, … or a patch (row, column).
        **options: ``limits`` of the colour scale, and ``width``, ``height`` and ``style`` of all figures.

    Raises:
        LookupError: if the recording lacks something, or the norm takes something else (in a post-norm block).
    """
    return draw_maps(
        [before_after_maps(recording, one, blocks, norm, token) for one in _images(recording, image)], **options
    )


def cosine_strip(
    recording: Recording,
    image: Images = 0,
    blocks: Any = None,
    site: str = Site.RESID_POST,
    token: Token = "cls",
    head: int | None = None,
    **options: Any,
) -> Figure:
    """Draw the cosine of a token to each patch at a site, block by block; arguments as for ``before_after``.

    Raises:
        LookupError: if the recording lacks something.
    """
    return draw_maps(
        [cosine_maps(recording, one, blocks, site, token, head) for one in _images(recording, image)], **options
    )


def norm_strip(
    recording: Recording,
    image: Images = 0,
    blocks: Any = None,
    site: str = Site.RESID_POST,
    head: int | None = None,
    **options: Any,
) -> Figure:
    """Draw the norm of each patch over the image's median, block by block, with high-norm patches outlined.

    Arguments as for ``before_after``.

    Raises:
        LookupError: if the recording lacks something.
    """
    return draw_maps([norm_maps(recording, one, blocks, site, head) for one in _images(recording, image)], **options)


def pca_strip(
    recording: Recording,
    image: Images = 0,
    blocks: Any = None,
    site: str = Site.RESID_POST,
    head: int | None = None,
    together: bool = False,
    **options: Any,
) -> Figure:
    """Draw the first three principal components of the foreground as colours, block by block.

    Arguments as for ``before_after``; ``together`` computes the components over all images instead of each image alone.

    Raises:
        LookupError: if the recording lacks something.
    """
    return draw_maps(component_grids(recording, _images(recording, image), blocks, site, head, together), **options)


def all_heads(
    recording: Recording,
    image: Images = 0,
    block: int = -1,
    token: Token = "cls",
    heads: Any = None,
    **options: Any,
) -> Figure:
    """Draw the attention of a token to each patch in all heads of a block, and their mean; 1 is uniform attention.

    Arguments as for ``before_after``; ``heads`` is a number, a list, or text like ``"0-2,5"``.

    Raises:
        LookupError: if the recording lacks something.
    """
    return draw_maps(
        [attention_maps(recording, one, block, token, heads) for one in _images(recording, image)], **options
    )


def _images(recording: Recording, image: Images) -> list[int]:
    if image is None:
        return list(range(image_count(recording)))
    return [image] if isinstance(image, int) else list(image)
