"""Effect of a replacement on the final tokens and class outputs, against the block where it is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenlens.figures._panels import INTERVALS, depth_axis, depth_line, legend_handle, remove_unused
from tokenlens.figures._rows import NUMBERS, as_list
from tokenlens.figures.base import NothingToDraw, group_title
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.interventions import CONTROL, Intervention

KIND = "intervention"
TITLE = "What a replacement changes at the end of the model"
ORDER = 500
CAPTION = (
    "A row per group of replaced tokens. Left to right: cosine of the final tokens to themselves in the untouched "
    "model, for each group, and the change of the class output and of a fitted probe's score where there is one. A "
    "line per replacement; the horizontal axis is the block in which tokens are replaced. 1: nothing changes. "
    "Dashed: as many random patches, the control of the high-norm patches. A token of zeros is outside everything that "
    "the model has seen."
)
METRICS = ()

LOOKS = {
    "zero": ("#7A4A21", "v"),
    "mean": ("#332288", "o"),
    "noise": ("#9C9A00", "D"),
    "shuffle": ("#D8127D", "s"),
}
"""Colour and marker of each replacement; none is the colour of a token group."""

_OTHER = (("#2FB9CC", "^"), ("#1b1b1f", "P"), ("#9A9A9A", "X"))

TITLES = {
    "class_kl": "class output, KL [nats]",
    "class_agreement": "same top class [share]",
    "probe_score": "change of the probe's score [share]",
}


def frame(
    intervention: Intervention,
    replace: str | Sequence[str] | None = None,
    by: str | Sequence[str] | None = None,
    site: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the effects of replacing groups of tokens.

    Args:
        replace: the groups that are replaced; by default all. ``high_norm`` includes its control.
        by: only these replacements.
        site: the sites; by default all.

    Raises:
        NothingToDraw: if there are no such effects.
    """
    table = intervention.table
    rows = table[table["metric"].isin(["final_cosine", *TITLES]) & (table["part"] != "after")]
    # The control belongs to the high-norm patches.
    replaced = rows["replace"].replace(CONTROL, "high_norm")
    for values, wanted in ((replaced, replace), (rows["by"], by), (rows["site"], site)):
        if wanted is not None:
            rows = rows[values.reindex(rows.index).isin(as_list(wanted))]
    # Where some patches are replaced, what counts is what the others lose.
    others = set(rows.loc[rows["part"] == "others", "replace"])
    rows = rows[~((rows["part"] == "all") & (rows["group"] == "patch") & rows["replace"].isin(others))]
    if rows.empty:
        given = {"replace": replace, "by": by, "site": site}
        asked = " and ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        if not asked:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in intervention.not_applicable.items())
            raise NothingToDraw(f"the intervention on {intervention.model} has no effects: {reasons}")
        conditions = dict.fromkeys(zip(table["replace"], table["by"], table["site"], strict=True))
        have = "; ".join(f"{target} by {name} at {place}" for target, name, place in conditions)
        raise NothingToDraw(f"there is no effect with {asked}; replaced are {have}")
    model = f"{intervention.model} (untrained)" if intervention.untrained else intervention.model
    columns = ["model", "replace", "by", "site", "metric", "part", "group", "block", *NUMBERS]
    return rows.assign(model=model)[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a row per replaced group and site, and a column per group and class output; a line per replacement."""
    frame = frame.assign(replaced=frame["replace"].replace(CONTROL, "high_norm"))
    rows = list(dict.fromkeys(frame[["replaced", "site"]].itertuples(index=False, name=None)))
    columns = list(dict.fromkeys(frame[["metric", "group"]].itertuples(index=False, name=None)))
    columns.sort(key=lambda column: (column[0] != "final_cosine", column[1] != "patch", column))
    by_panel = dict(iter(frame.groupby(["replaced", "site", "metric", "group"], sort=False)))
    panels = [(row, column, by_panel[row + column]) for row in rows for column in columns if row + column in by_panel]
    below = paper().narrow and ax is None
    if below or ax is not None:
        page = canvas(ax, *((len(panels), 1, 16 + 36 * len(panels)) if below else (1, len(panels), 68)))
        axes = list(page.axes.flat)
    else:
        page = canvas(None, len(rows), len(columns), 20 + 48 * len(rows))
        axes = [page.axes[rows.index(row), columns.index(column)] for row, column, _ in panels]
        remove_unused(np.array([panel for panel in page.axes.flat if panel not in axes], dtype=object), 0)
    looks = _looks(frame["by"])
    for panel, (row, column, inside) in zip(axes, panels, strict=True):
        for (replace, by), lines in inside.groupby(["replace", "by"], sort=False):
            depth_line(panel, lines, *looks[by], hollow=replace == CONTROL)
        last = panel is axes[-1] if below else row == rows[-1]
        depth_axis(panel, inside["block"], room=25 if below else 7, label=last)
        panel.grid(axis="y")
        which = f"{group_title(row[0])} replaced" + (f" at {row[1]}" if frame["site"].nunique() > 1 else "")
        title = _title(column[0], column[1], (inside["part"] == "others").any())
        page.title(panel, f"{which}: {title}" if len(rows) > 1 else title)
        if column[0] == "class_kl":
            panel.set_ylim(bottom=0)
    handles = [legend_handle(by, *looks[by]) for by in looks]
    controlled = frame.loc[frame["replace"] == CONTROL, "by"].unique()
    page.legend(handles + [legend_handle(f"{by}, control", *looks[by], True) for by in looks if by in controlled])
    sites = ", ".join(dict.fromkeys(site for _, site in rows))
    names = ", ".join(dict.fromkeys(group_title(name) for name, _ in rows))
    page.header(frame, f"{names} replaced at {sites} · {INTERVALS}")
    return page.figure


def _title(metric: str, group: str, others: bool) -> str:
    name = group_title(group) + (", the others" if others else "")
    return TITLES.get(metric) or f"final {name}: cosine to {'itself' if group == 'cls' else 'themselves'}"


def _looks(names: pd.Series) -> dict[str, tuple[str, str]]:
    """Return colour and marker for each replacement."""
    present = list(dict.fromkeys(names))
    free = iter(_OTHER * len(present))
    return {name: LOOKS.get(name) or next(free) for name in [*(n for n in LOOKS if n in present), *present]}
