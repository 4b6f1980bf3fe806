"""Figures, one file each: numbers first (``frame``), drawing second (``plot``)."""

from tokenlens.figures.base import NothingToDraw, draw, figures, figures_of, save_figure

__all__ = [
    "NothingToDraw",
    "draw",
    "figures",
    "figures_of",
    "save_figure",
]
