"""What specialization changes in each probe, seed by seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes

from tokenlens.figures._variants import (
    PROBED,
    dots_and_means,
    probe_name,
    probed_cell,
    seeds_text,
    variant_handles,
    variants_in_order,
)
from tokenlens.figures.base import VERIFICATION, NothingToDraw
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.figures.style import FAINT, INK
from tokenlens.verification.findings import CLAIM, LOST
from tokenlens.verification.numbers import CLASSES, DENSE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.verification.verify import Verification

TITLE = "Specialized less standard, seed by seed"
ORDER = 400
OF = VERIFICATION
CAPTION = (
    "Each small dot is a pair of models of one seed: the specialized one's number less the standard one's. Large "
    "markers are means over seeds with 95 % intervals (Student's t over seeds). The mean over resolutions decides "
    "on F3; the dashed line of mean IoU is the smallest gain that the paper claims, that of accuracy the loss up "
    "to which classification counts as kept. Seeds whose pair is not complete are left out of the means."
)
METRICS: tuple[str, ...] = ()

COLUMNS = ("setting", "variant", "measure", "cell", "seed", "difference", "ci_low", "ci_high", "seeds")
_LINES = {DENSE: CLAIM, CLASSES: -LOST}


def frame(verification: Verification) -> pd.DataFrame:
    """Differences of each pair (with its ``seed``) and over seeds (without), in percentage points.

    Raises:
        NothingToDraw: if there is no pair.
    """
    each, over = verification.differences, verification.effects
    each = each[each["measure"].isin(PROBED)].copy()
    over = over[over["measure"].isin(PROBED) & (over["against"] == "standard")].copy()
    if over.empty:
        raise NothingToDraw("no specialized model has a standard one to be set against yet")
    each["cell"] = probed_cell(each)
    whole = each[(each["measure"] != CLASSES) | (each["source"] == "cls")]
    keys = ["setting", "variant", "measure"]
    several = whole.groupby(keys)["cell"].transform("nunique") > 1
    means = whole[several].groupby([*keys, "seed"], as_index=False)["difference"].mean()
    averaged = pd.MultiIndex.from_frame(over[keys]).isin(pd.MultiIndex.from_frame(means[keys]))
    over = over[(over["cell"] != "mean") | averaged]  # the mean of one cell is that cell
    told = pd.concat([each, means.assign(cell="mean"), over])
    told["seed"] = told["seed"].astype("Int64")
    return told[list(COLUMNS)].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """A panel for mean IoU and one for accuracy; a row for each probe, in each row every variant.

    Args:
        frame: of ``frame``.
        ax: one Axes for each panel; a new figure by default.
    """
    settings = list(dict.fromkeys(frame["setting"]))
    measures = [measure for measure in PROBED if measure in set(frame["measure"])]
    variants = variants_in_order(frame["variant"])
    rows = max(frame[frame["measure"] == measure]["cell"].nunique() for measure in measures)
    tall = 18 + rows * (7 + 4 * len(variants))
    narrow = paper().narrow and ax is None
    shape = (len(settings) * len(measures), 1) if narrow else (len(settings), len(measures))
    page = canvas(ax, *shape, 10 + tall * shape[0])
    panels = iter(page.axes.flat)
    for setting in settings:
        for measure in measures:
            panel = next(panels)
            _panel(panel, frame[(frame["setting"] == setting) & (frame["measure"] == measure)], variants, measure)
            page.title(panel, f"difference of {PROBED[measure]}")
    page.legend(variant_handles(variants))
    page.note(" · ".join([*settings, seeds_text(frame["seed"].dropna())]))
    return page.figure


def _panel(panel: Axes, rows: pd.DataFrame, variants: list[str], measure: str) -> None:
    cells = sorted(dict.fromkeys(rows["cell"]), key=lambda cell: (cell != "mean", len(cell), cell))
    for place, cell in enumerate(cells):
        dots_and_means(panel, rows[rows["cell"] == cell], variants, place, "difference")
    panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
    panel.axvline(_LINES[measure], color=FAINT, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    names = ["mean over resolutions" if cell == "mean" else probe_name(cell) for cell in cells]
    panel.set_yticks(range(len(cells)), names)
    panel.set_ylim(len(cells) - 0.5, -0.5)
    panel.grid(axis="x")
    panel.set_xlabel("percentage points")
