"""Which stage of each norm separates CLS from patches in every variant: centring, γ or β."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._panels import depth_axis, zero_line
from tokenlens.figures._variants import variants_in_order
from tokenlens.figures.base import VERIFICATION, NothingToDraw
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.figures.stage_split import PARTS, stack, stage_handles
from tokenlens.verification.variants import START

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.verification.verify import Verification

TITLE = "What each stage of the norms contributes, variant by variant"
ORDER = 430
OF = VERIFICATION
CAPTION = (
    "The fall of the CLS–patch cosine across each norm, split exactly into centring, the weight γ and the bias β, "
    "block by block; mean over images and over the models of a variant. Bars add up to the total (diamond, with its "
    "95 % interval over seeds where there are several): above 0 the stage pulls apart, below 0 it brings together. In "
    "a specialized norm plain bars are what is left where CLS is given the patches' γ and β, hatched ones what CLS's "
    "own add to that."
)
METRICS = ("norm_differentiation",)

COLUMNS = ("setting", "variant", "norm", "block", "stage", "value", "ci_low", "ci_high", "seeds")


def frame(verification: Verification) -> pd.DataFrame:
    """A row for each variant, norm, block and stage.

    Raises:
        NothingToDraw: if no model was analyzed.
    """
    stages = verification.stages
    rows = stages[(stages["against"] == "") & stages["blocks"].astype(str).str.isdigit() & stages["part"].isin(PARTS)]
    if rows.empty:
        raise NothingToDraw("no model with CLS and patches was analyzed yet")
    return rows.assign(block=rows["blocks"].astype(int), stage=rows["part"])[list(COLUMNS)].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Signed, stacked bars: a row of panels for each norm, a column for each variant, the start first.

    Args:
        frame: of ``frame``.
        ax: as many Axes as there are panels; a new figure by default.
    """
    most = 2 if paper().narrow and ax is None else 3
    cells = []
    for setting in dict.fromkeys(frame["setting"]):
        mine = frame[frame["setting"] == setting]
        names = sorted(variants_in_order(mine["variant"]), key=lambda name: name != START)
        for norm in dict.fromkeys(mine["norm"]):
            row = [(setting, norm, name) for name in names]
            cells += [(row[at : at + most]) for at in range(0, len(row), most)]
    columns = max(map(len, cells))
    page = canvas(ax, len(cells), columns, 22 + 38 * len(cells), sharey=True)
    for panels, row in zip(page.axes, cells, strict=True):
        for panel, cell in zip(panels, [*row, *[None] * (columns - len(row))], strict=True):
            if cell is None:
                panel.set_visible(False)
                continue
            setting, norm, name = cell
            inside = frame[(frame["setting"] == setting) & (frame["norm"] == norm) & (frame["variant"] == name)]
            stack(panel, inside)
            depth_axis(panel, inside["block"])
            panel.grid(axis="y")
            zero_line(panel)
            seeds = int(inside["seeds"].max())
            page.title(panel, f"{name} ({seeds} model{'s' if seeds != 1 else ''})")
            if panel is panels[0]:
                panel.set_ylabel(f"{norm}: fall of\nCLS–patch cosine")
    page.level()
    page.legend(stage_handles(frame))
    settings = filter(None, dict.fromkeys(frame["setting"]))
    page.note(" · ".join([*settings, "bar on the total: 95 % interval over seeds"]))
    return page.figure
