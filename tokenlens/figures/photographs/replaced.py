"""A photograph's final patches, untouched and with tokens replaced block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.figure import Figure

from tokenlens.figures.photographs.grids import draw_maps
from tokenlens.interventions import Intervention
from tokenlens.overlays.replaced_maps import replaced_maps


def replaced_patches(
    intervention: Intervention,
    image: int = 0,
    replace: str | None = None,
    by: Sequence[str] | None = None,
    blocks: Sequence[int] | None = None,
    show: Literal["components", "cosine"] = "components",
    **options: Any,
) -> Figure:
    """Draw a photograph's final patches, untouched and with tokens replaced block by block, a row per replacement.

    Args:
        intervention: the result of ``intervene``.
        image: one of its photographs.
        replace: the replaced group; by default the first one.
        by: only these replacements.
        blocks: where tokens are replaced; by default up to five blocks, evenly spaced.
        show: principal components as colours, or the cosine of each patch to itself.
        **options: ``limits`` of the colour scale, and ``width``, ``height`` and ``style`` of all figures.

    Raises:
        LookupError: if there is no such photograph or condition, or pixels were not kept.
    """
    return draw_maps(replaced_maps(intervention, image, replace, by, blocks, show), **options)
