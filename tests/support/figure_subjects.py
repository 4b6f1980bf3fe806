"""Analyses and comparisons of many kinds, and their figures, for tests of the figures."""

from __future__ import annotations

from functools import cache, partial

from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.support.synthetic_analysis import synthetic_analysis
from tests.support.synthetic_comparison import synthetic_comparison, with_values
from tests.support.synthetic_photographs import with_photographs
from tokenlens.comparison.compare import compare
from tokenlens.figures import NothingToDraw, draw

LONG_NAME = "hf-hub:some-organisation/" + "a_vision_transformer_with_a_name_of_its_own." * 4
NO_CLS = {"groups": ("reg", "patch"), "blocks": 3}

ANALYSES = {
    "usual": {"channels": 64, "specialized": True},
    "large and untrained": {
        "blocks": 40,
        "heads": 24,
        "n": 8,
        "channels": 1100,
        "groups": ("cls", "dist", "reg", "patch"),
        "model": LONG_NAME,
        "untrained": True,
        "specialized": True,
    },
    "standard": {"blocks": 3, "channels": 64},
    "one block": {"blocks": 1, "heads": 1, "channels": 64, "specialized": True},
    "one image": {"n": 1, "blocks": 3, "channels": 64, "specialized": True},
    "rms on a wide grid": {"rms": True, "grid": (4, 20), "blocks": 3, "channels": 64, "specialized": True},
    "no cls": {**NO_CLS, "channels": 64, "specialized": True},
}


def of(*kinds):
    return compare(*(with_values(synthetic_analysis(channels=32, **kind), seed=i) for i, kind in enumerate(kinds)))


COMPARISONS = {
    "two": partial(synthetic_comparison, models=2, n=16, channels=32),
    "six of different depth": partial(synthetic_comparison, models=6, n=16, blocks=(12, 24, 6), channels=32),
    "unpaired": partial(synthetic_comparison, models=3, n=16, paired=False, blocks=(6, 6, 3), channels=32),
    "long names, 40 blocks, 24 heads": lambda: of(
        {"model": LONG_NAME, "blocks": 40, "heads": 24, "n": 8}, {"model": LONG_NAME, "untrained": True, "n": 8}
    ),
    "one without cls": lambda: of(
        {"n": 8, "blocks": 3},
        {"n": 8, "blocks": 2, "untrained": True},
        {"n": 8, **NO_CLS, "model": "vit_little_patch16_reg4_gap_256"},
    ),
    "none with cls": lambda: of({"n": 8, **NO_CLS}, {"n": 8, **NO_CLS, "seed": 1}),
    "one block, one image": lambda: of({"n": 1, "blocks": 1, "heads": 1}, {"n": 1, "blocks": 1, "heads": 1, "seed": 3}),
}


@cache
def subject(kind):
    if kind in COMPARISONS:
        return COMPARISONS[kind]()
    analysis = synthetic_analysis(**ANALYSES[kind])
    return with_photographs(analysis, analysis.images) if analysis.layout.has("cls") else analysis


@cache
def figure_of(kind, name, width="double") -> Figure | None:
    """Return a figure that tests must not change; None if there is nothing to draw."""
    try:
        return draw(subject(kind), name, width=width)
    except NothingToDraw:
        return None


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_visible())


def smallest_text(figure: Figure) -> float:
    """Return the size of a figure's smallest text, in points."""
    return min(text.get_fontsize() for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip())
