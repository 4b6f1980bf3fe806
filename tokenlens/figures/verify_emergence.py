"""How CLS and patches part in standard and in specialized models while they are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._panels import zero_line
from tokenlens.figures._variants import seed_lines, seeds_text, variant_lines, variants_in_order
from tokenlens.figures.base import VERIFICATION, NothingToDraw
from tokenlens.figures.page import canvas, images_text, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.verification.verify import Verification

TITLE = "How far the norm before attention pulls CLS and patches apart, on the way"
ORDER = 420
OF = VERIFICATION
CAPTION = (
    "The fall of the CLS–patch cosine across norm1, mean over blocks, on a fixed batch of images while a model is "
    "trained. Thin lines are seeds, thick ones their means. F1 expects it to be well above 0 in a trained model."
)
METRICS = ("norm_differentiation",)


def frame(verification: Verification) -> pd.DataFrame:
    """A row for each run and diagnosed step: ``setting variant seed step value n``.

    Raises:
        NothingToDraw: if nothing was diagnosed.
    """
    if verification.emergence.empty:
        raise NothingToDraw("nothing was diagnosed while the models were trained (the recipe's diagnose_every is 0)")
    return verification.emergence


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """A panel for each setting.

    Args:
        frame: of ``frame``.
        ax: one Axes for each setting; a new figure by default.
    """
    settings = list(dict.fromkeys(frame["setting"]))
    variants = variants_in_order(frame["variant"])
    page = canvas(ax, len(settings), 1, 12 + 55 * len(settings))
    for panel, setting in zip(page.axes.flat, settings, strict=True):
        mine = frame[frame["setting"] == setting]
        for variant in variants:
            seed_lines(panel, mine, variant, "value")
        zero_line(panel)
        panel.grid(axis="y")
        panel.set_xlabel("step")
        panel.set_ylabel("cosine before − after")
        page.title(panel, "fall of CLS–patch cosine across norm1")
    page.legend(variant_lines(variants))
    page.note(" · ".join([*settings, seeds_text(frame["seed"]), images_text(frame["n"])]))
    return page.figure
