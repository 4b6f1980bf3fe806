"""Contribution of centring, γ and β to the separation of CLS and patches, by variant."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.figures._panels import depth_axis, zero_line
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.figures.stage_split import PARTS, stack, stage_handles
from tokenlens.figures.style import sort_variants
from tokenlens.verification.result import Verification
from tokenlens.verification.variants import START

KIND = "verification"
TITLE = "Contribution of each stage of the norms, by variant"
ORDER = 430
CAPTION = (
    "Fall of the CLS–patch cosine across each norm, split exactly into centring, the weight γ and the bias β, by "
    "block; mean over images and over the models of a variant. The bars add up to the total (diamond, with its 95 % "
    "interval if there are several seeds): above 0 a stage separates CLS and patches, below 0 it brings them "
    "together. In a specialized norm, plain bars show the effect if CLS used the patches' γ and β, and hatched bars "
    "the additional effect of CLS's specialized γ and β."
)
METRICS = ("norm_differentiation",)

COLUMNS = ("setting", "variant", "norm", "block", "stage", "value", "ci_low", "ci_high", "seeds")


def frame(verification: Verification) -> pd.DataFrame:
    """Return one row per variant, norm, block and stage.

    Raises:
        NothingToDraw: if no model was analyzed.
    """
    stages = verification.stages
    rows = stages[(stages["against"] == "") & stages["blocks"].astype(str).str.isdigit() & stages["part"].isin(PARTS)]
    if rows.empty:
        raise NothingToDraw("no model with CLS and patches has been analyzed yet")
    return rows.assign(block=rows["blocks"].astype(int), stage=rows["part"])[list(COLUMNS)].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw signed, stacked bars: a row of panels per norm and a column per variant, starting weights first."""
    most = 2 if paper().narrow and ax is None else 3
    lines = []
    for setting in dict.fromkeys(frame["setting"]):
        mine = frame[frame["setting"] == setting]
        names = sorted(sort_variants(mine["variant"]), key=lambda name: name != START)
        for norm in dict.fromkeys(mine["norm"]):
            row = [(setting, norm, name) for name in names]
            lines += [(row[at : at + most]) for at in range(0, len(row), most)]
    columns = max(map(len, lines))
    page = canvas(ax, len(lines), columns, 22 + 38 * len(lines), sharey=True)
    for panels, row in zip(page.axes, lines, strict=True):
        for panel, shown in zip(panels, [*row, *[None] * (columns - len(row))], strict=True):
            if shown is None:
                panel.set_visible(False)
                continue
            setting, norm, name = shown
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
