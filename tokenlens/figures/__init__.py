"""Figures, one file each: numbers first (``frame``), drawing second (``plot``)."""

from tokenlens.figures._draw import draw
from tokenlens.figures._files import save_figure
from tokenlens.figures.base import NothingToDraw, figures, figures_of

__all__ = [
    "NothingToDraw",
    "draw",
    "figures",
    "figures_of",
    "save_figure",
]
