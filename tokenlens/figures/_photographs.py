"""Select the maps of the first images of an analysis, or raise NothingToDraw with the reason."""

from __future__ import annotations

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.photographs import Photographs
from tokenlens.figures._rows import missing
from tokenlens.figures.base import NothingToDraw

OF_MAPS = "cls_patch_cosine"
"""A metric that applies to the models of which maps are kept."""


def maps_of(analysis: Analysis, what: str) -> Photographs:
    """Return the maps of the first images; raise NothingToDraw, which names ``what`` was not computed, without them."""
    kept = analysis.photographs
    if kept is None:
        if OF_MAPS in analysis.not_applicable:
            raise missing(analysis, OF_MAPS)
        again = "Analyze again with metrics=['norm_differentiation', …]."
        raise NothingToDraw(f"{what} was not computed for {analysis.model}. {again}")
    return kept
