"""Effect of a replacement on the final tokens and class outputs, against the block where it is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.figures._panels import INTERVALS, depth_axis, depth_line, legend_handle
from tokenlens.figures._rows import NUMBERS, as_list
from tokenlens.figures.base import NothingToDraw, group_title
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.interventions import CONTROL, Intervention

KIND = "intervention"
TITLE = "What a replacement changes at the end of the model"
ORDER = 500
CAPTION = (
    "Left to right: cosine of the final tokens to themselves in the untouched model, for each group, and the change of "
    "the class output where the model has one. A line per replacement; the horizontal axis is the block after which "
    "tokens are replaced. 1 means that nothing changes. Dashed: as many random patches, the control of the high-norm "
    "patches. A token of zeros is outside everything that the model has seen."
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

TITLES = {"class_kl": "class output, KL [nats]", "class_agreement": "same top class [share]"}


def frame(
    intervention: Intervention,
    replace: str | None = None,
    by: str | Sequence[str] | None = None,
    site: str | None = None,
) -> pd.DataFrame:
    """Return the effects of replacing one group at one site.

    Args:
        replace: the group that is replaced; by default the first one. ``high_norm`` includes its control.
        by: only these replacements.
        site: the site; by default the first one.

    Raises:
        NothingToDraw: if there are no such effects.
    """
    table = intervention.table
    replace = str(table["replace"].iloc[0]) if replace is None else replace
    site = str(table["site"].iloc[0]) if site is None else site
    wanted = [replace, CONTROL] if replace == "high_norm" else [replace]
    rows = table[table["replace"].isin(wanted) & (table["site"] == site) & (table["metric"] != "replaced_tokens")]
    rows = rows if by is None else rows[rows["by"].isin(as_list(by))]
    # Where some patches are replaced, what counts is what the others lose.
    others = set(rows.loc[rows["part"] == "others", "replace"])
    rows = rows[~((rows["part"] == "all") & (rows["group"] == "patch") & rows["replace"].isin(others))]
    if rows.empty:
        have = table[["replace", "by", "site"]].drop_duplicates().to_records(index=False).tolist()
        raise NothingToDraw(f"there is no replacement of {replace} at {site}; there are {have}")
    model = f"{intervention.model} (untrained)" if intervention.untrained else intervention.model
    columns = ["model", "replace", "by", "site", "metric", "part", "group", "block", *NUMBERS]
    return rows.assign(model=model)[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a panel per group and class output, with a line per replacement."""
    panels = list(dict.fromkeys(frame[["metric", "group"]].itertuples(index=False, name=None)))
    panels.sort(key=lambda panel: (panel[0] != "final_cosine", panel[1] != "patch", panel))
    below = paper().narrow and ax is None
    page = canvas(ax, *((len(panels), 1, 16 + 36 * len(panels)) if below else (1, len(panels), 68)))
    looks = _looks(frame["by"])
    for panel, (metric, group) in zip(page.axes.flat, panels, strict=True):
        inside = frame[(frame["metric"] == metric) & (frame["group"] == group)]
        for (replace, by), rows in inside.groupby(["replace", "by"], sort=False):
            depth_line(panel, rows, *looks[by], hollow=replace == CONTROL)
        depth_axis(panel, inside["block"], room=25 if below else 7, label=not below or (metric, group) == panels[-1])
        panel.grid(axis="y")
        others = ", the others" if (inside["part"] == "others").any() else ""
        page.title(
            panel,
            TITLES.get(metric)
            or f"final {group_title(group)}{others}: cosine to {'itself' if group == 'cls' else 'themselves'}",
        )
        if metric == "class_kl":
            panel.set_ylim(bottom=0)
    control = (frame["replace"] == CONTROL).any()
    handles = [legend_handle(by, *looks[by]) for by in looks]
    page.legend(handles + [legend_handle(f"{by}, control", *looks[by], True) for by in looks if control])
    replaced = group_title(str(frame["replace"].iloc[0])).replace("_", "-")
    page.header(frame, f"{replaced} replaced at {frame['site'].iloc[0]} · {INTERVALS}")
    return page.figure


def _looks(names: pd.Series) -> dict[str, tuple[str, str]]:
    """Return colour and marker for each replacement."""
    present = list(dict.fromkeys(names))
    free = iter(_OTHER * len(present))
    return {name: LOOKS.get(name) or next(free) for name in [*(n for n in LOOKS if n in present), *present]}
