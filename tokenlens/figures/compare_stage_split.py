"""Contribution of centring, weight γ and bias β to the fall of the cosine, by model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.comparison.comparison import Comparison
from tokenlens.figures._comparison_panels import grid
from tokenlens.figures._comparison_rows import comparison_note, rows_of_models, shared_rows
from tokenlens.figures._model_labels import model_labels
from tokenlens.figures._panels import depth_axis, zero_line
from tokenlens.figures._rows import NUMBERS
from tokenlens.figures.base import group_title
from tokenlens.figures.page import paper, styled
from tokenlens.figures.stage_split import PARTS, stack, stage_handles, weights_used

KIND = "comparison"
TITLE = "Contribution of each stage of the norms, by model"
ORDER = 240
CAPTION = (
    "Fall of the CLS–patch cosine across each norm, split exactly into the norm's stages: subtracting the mean "
    "(centring), multiplying by the weight γ and adding the bias β. The bars add up to the total (diamond, with its "
    "95 % interval): above 0 a stage separates CLS and patches, below 0 it brings them together. In a specialized "
    "norm, plain bars show the effect if CLS used the patches' γ and β, and hatched bars the additional effect of "
    "CLS's specialized γ and β."
)
METRICS = ("norm_differentiation",)


def frame(
    comparison: Comparison, norms: str | Sequence[str] = ("norm1", "norm2"), group: str = "cls-patch"
) -> pd.DataFrame:
    """Return the contribution of each stage, and the total, per model, norm and block.

    Args:
        norms: one or both of ``norm1`` and ``norm2``.
        group: ``cls-patch`` or ``patch-patch``.

    Raises:
        NothingToDraw: if fewer than two models have such numbers.
    """
    rows = rows_of_models(comparison, "norm_differentiation", parts=PARTS, sites=norms, groups=group)
    rows = shared_rows(rows[rows["block"].notna()], ["site"]).rename(columns={"part": "stage"})
    rows["weights"] = ""
    for label, analysis in comparison.analyses.items():
        of_model = rows["label"] == label
        rows.loc[of_model, "weights"] = weights_used(rows[of_model], analysis.table)
    columns = ["label", "model_number", "model", "metric", "site", "group", "weights", "block", "depth", "stage"]
    return rows[[*columns, *NUMBERS, "left_out"]]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw signed, stacked bars: a row of panels per norm and a column per model."""
    norms, numbers = list(dict.fromkeys(frame["site"])), sorted(frame["model_number"].unique())
    most = 2 if paper().narrow else 3
    names = model_labels(frame, 0.82 * paper().width / min(most, len(numbers)))
    page, panels = grid(ax, norms, numbers, most, (26, 38), sharey=True)
    for panel in panels:
        inside = frame[(frame["site"] == panel.row) & (frame["model_number"] == panel.column)]
        stack(panel.axes, inside)
        depth_axis(panel.axes, frame.loc[frame["model_number"] == panel.column, "block"], label=panel.bottom)
        panel.axes.tick_params(axis="x", labelbottom=panel.row == norms[-1])
        panel.axes.grid(axis="y")
        zero_line(panel.axes)
        if panel.top:
            page.title(panel.axes, names.short(panel.column))
        if panel.left:
            panel.axes.set_ylabel(f"{panel.row}: fall of\n{group_title(frame['group'].iloc[0])} cosine")
    page.level()
    page.legend([*stage_handles(frame), *names.handles(lines=False)])
    specialized = list(dict.fromkeys(frame.loc[frame["weights"] != "one set", "label"]))
    note = f" · specialized norms: {', '.join(specialized)}" if specialized else ""
    comparison_note(page, frame, f"mean over images; bar on the total: 95 % interval{note}")
    return page.figure
