"""Which stage of each norm moves the cosine, model beside model: centring, the weight γ or the bias β."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures._models import comparison_note, grid, names_of, rows_of_models, shared
from tokenlens.figures._panels import depth_axis, zero_line
from tokenlens.figures._rows import pair_title
from tokenlens.figures.page import paper, styled
from tokenlens.figures.stage_split import PARTS, stack, stage_handles, weights_used

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.comparison.comparison import Comparison

OF = "comparison"
TITLE = "What each stage of the norm contributes, model by model"
ORDER = 240
CAPTION = (
    "The fall of CLS–patch cosine across each norm, split exactly into the norm's stages: subtracting the mean "
    "(centring), the weight γ and the bias β. Bars add up to the total (diamond, with its 95 % interval): above 0 the"
    " stage pulls apart, below 0 it brings together. Where a model is specialized, CLS goes through a γ and β of its "
    "own and the patches through theirs: plain bars are what is left where CLS is given the patches' as well, hatched "
    "ones what CLS's own add to that."
)
METRICS = ("norm_differentiation",)


def frame(
    comparison: Comparison, norms: str | Sequence[str] = ("norm1", "norm2"), group: str = "cls-patch"
) -> pd.DataFrame:
    """Contributions of the stages, and their total, per model, norm and block.

    Args:
        comparison: where the numbers come from.
        norms: of ``norm1`` and ``norm2``.
        group: ``cls-patch`` or ``patch-patch``.

    Raises:
        NothingToDraw: if fewer than two models have such numbers.
    """
    rows = rows_of_models(comparison, "norm_differentiation", parts=PARTS, sites=norms, groups=group)
    rows = shared(rows[rows["block"].notna()], ["site"]).rename(columns={"part": "stage"})
    rows["weights"] = ""
    for label, analysis in comparison.analyses.items():
        own = rows["label"] == label
        rows.loc[own, "weights"] = weights_used(rows[own], analysis.table)
    columns = ["label", "model_number", "model", "metric", "site", "group", "weights", "block", "depth", "stage"]
    return rows[[*columns, "value", "sd", "n", "ci_low", "ci_high", "unit", "left_out"]]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: signed, stacked bars, a row of panels for each norm and a column for each model.

    Args:
        frame: of ``frame``.
        ax: as many Axes as there are panels; a new figure by default.
    """
    norms, numbers = list(dict.fromkeys(frame["site"])), sorted(frame["model_number"].unique())
    most = 2 if paper().narrow else 3
    names = names_of(frame, 0.82 * paper().width / min(most, len(numbers)))
    page, cells = grid(ax, norms, numbers, most, (26, 38), sharey=True)
    for cell in cells:
        inside = frame[(frame["site"] == cell.row) & (frame["model_number"] == cell.column)]
        stack(cell.panel, inside)
        depth_axis(cell.panel, frame.loc[frame["model_number"] == cell.column, "block"], label=cell.bottom)
        cell.panel.tick_params(axis="x", labelbottom=cell.row == norms[-1])
        cell.panel.grid(axis="y")
        zero_line(cell.panel)
        if cell.top:
            page.title(cell.panel, names.short(cell.column))
        if cell.left:
            cell.panel.set_ylabel(f"{cell.row}: fall of\n{pair_title(frame['group'].iloc[0])} cosine")
    page.level()
    page.legend([*stage_handles(frame), *names.handles(lines=False)])
    specialized = list(dict.fromkeys(frame.loc[frame["weights"] != "one set", "label"]))
    note = f" · specialized norms: {', '.join(specialized)}" if specialized else ""
    comparison_note(page, frame, f"mean over images; bar on the total: 95 % interval{note}")
    return page.figure
