"""Separation of CLS and patches during training, in standard and specialized models."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.figures._panels import zero_line
from tokenlens.figures._variants import seed_lines, setting_panels, variant_lines, variants_note
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import images_text, styled
from tokenlens.figures.style import sort_variants
from tokenlens.verification.result import Verification

KIND = "verification"
TITLE = "Differentiation by the norm before attention during training"
ORDER = 420
CAPTION = (
    "Fall of the CLS–patch cosine across norm1, averaged over blocks, on a fixed batch of images during training. "
    "Thin lines are seeds, thick lines their means. F1 expects it to be well above 0 in a trained model."
)
METRICS = ("norm_differentiation",)


def frame(verification: Verification) -> pd.DataFrame:
    """Return one row per run and step with diagnostics: ``setting variant seed step value n``.

    Raises:
        NothingToDraw: if there are no diagnostics.
    """
    if verification.emergence.empty:
        raise NothingToDraw("the trainings have no diagnostics (the recipe's diagnose_every is 0)")
    return verification.emergence


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw one panel per setting."""
    page, panels = setting_panels(frame, ax, [""], (12, 55))
    for panel, _, rows in panels:
        seed_lines(panel, rows, "value")
        zero_line(panel)
        panel.set_ylabel("cosine before − after")
        page.title(panel, "fall of CLS–patch cosine across norm1")
    page.legend(variant_lines(sort_variants(frame["variant"])))
    variants_note(page, frame, images_text(frame["n"]))
    return page.figure
