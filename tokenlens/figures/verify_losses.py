"""Training losses of all runs, and their differences from the standard model of the same seed."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.figures._panels import zero_line
from tokenlens.figures._variants import seed_lines, setting_panels, variant_lines, variants_note
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import styled
from tokenlens.figures.style import sort_variants
from tokenlens.verification.result import Verification

KIND = "verification"
TITLE = "Training losses"
ORDER = 410
CAPTION = (
    "Left: loss of each run. Right: a variant's loss minus that of the standard model with the same seed, which has "
    "the same initial weights and sees the same images in the same order; thin lines are seeds, the thick line is "
    "their mean. Below 0 the specialized model fits its objective better, which does not imply better features."
)
METRICS: tuple[str, ...] = ()

COLUMNS = ("setting", "variant", "seed", "step", "value", "difference")


def frame(verification: Verification) -> pd.DataFrame:
    """Return the total loss at each logged step, and its difference from the standard model of the same seed.

    Raises:
        NothingToDraw: if no training is finished.
    """
    rows = verification.curves[verification.curves["source"] == "loss"]
    if rows.empty:
        raise NothingToDraw("no training is finished yet")
    keys = ["setting", "seed", "step"]
    standard = rows[rows["variant"] == "standard"][[*keys, "value"]].rename(columns={"value": "baseline"})
    both = rows.merge(standard, on=keys, how="left")
    both["difference"] = (both["value"] - both["baseline"]).where(both["variant"] != "standard")
    return both[list(COLUMNS)]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw losses on the left and differences on the right, with a row of panels per setting."""
    titles = {"value": ("loss", "loss"), "difference": ("difference from the standard model", "difference")}
    page, panels = setting_panels(frame, ax, list(titles), (12, 58))
    for panel, column, rows in panels:
        title, label = titles[column]
        seed_lines(panel, rows, column, mean=column == "difference")
        if column == "difference":
            zero_line(panel)
        panel.set_ylabel(label)
        page.title(panel, title)
    page.legend(variant_lines(sort_variants(frame["variant"])))
    variants_note(page, frame)
    return page.figure
