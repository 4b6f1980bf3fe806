"""The losses of training: every run, and how pairs of one seed differ on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._panels import zero_line
from tokenlens.figures._variants import seed_lines, seeds_text, variant_lines, variants_in_order
from tokenlens.figures.base import VERIFICATION, NothingToDraw
from tokenlens.figures.page import canvas, paper, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.verification.verify import Verification

TITLE = "Losses of training"
ORDER = 410
OF = VERIFICATION
CAPTION = (
    "Left: the loss of every run. Right: a variant's loss less that of the standard model of its seed, which has "
    "the same weights at the start and sees the same images in the same order; thin lines are seeds, the thick one "
    "is their mean. Below 0 the specialized model learns its objective better, which is not yet a better feature."
)
METRICS: tuple[str, ...] = ()

COLUMNS = ("setting", "variant", "seed", "step", "value", "difference")


def frame(verification: Verification) -> pd.DataFrame:
    """The whole loss at each row of a run's metrics, and its difference from the standard model of that seed.

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
    """Losses on the left, differences on the right; a row for each setting.

    Args:
        frame: of ``frame``.
        ax: two Axes for each setting; a new figure by default.
    """
    settings = list(dict.fromkeys(frame["setting"]))
    variants = variants_in_order(frame["variant"])
    narrow = paper().narrow and ax is None
    shape = (2 * len(settings), 1) if narrow else (len(settings), 2)
    page = canvas(ax, *shape, 12 + 58 * shape[0])
    panels = iter(page.axes.flat)
    for setting in settings:
        mine = frame[frame["setting"] == setting]
        columns = (("value", "loss", "loss"), ("difference", "less the standard model's", "difference"))
        for column, title, label in columns:
            panel = next(panels)
            for variant in variants:
                seed_lines(panel, mine, variant, column, mean=column == "difference")
            if column == "difference":
                zero_line(panel)
            panel.grid(axis="y")
            panel.set_xlabel("step")
            panel.set_ylabel(label)
            page.title(panel, title)
    page.legend(variant_lines(variants))
    page.note(" · ".join([*settings, seeds_text(frame["seed"])]))
    return page.figure
