"""Contribution of centring, weight γ and bias β to the fall of the cosine across each norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import norm_panels, zero_line
from tokenlens.figures._rows import NUMBERS, rows_of_norms
from tokenlens.figures.base import group_title, sort_groups
from tokenlens.figures.page import styled
from tokenlens.figures.style import INK, PAPER, STAGE_COLOURS

KIND = "analysis"
TITLE = "Contribution of each stage of the norms"
ORDER = 20
GROUP = "Cosines"
CAPTION = (
    "Fall of the cosine across each norm, split exactly into the norm's stages: subtracting the mean (centring), "
    "multiplying by the weight γ and adding the bias β; division by σ does not change a cosine. The bars add up to "
    "the total (diamond): above 0 a stage separates the tokens, below 0 it brings them together. RMSNorm has no "
    "centring. In a specialized norm, plain bars show the effect if CLS used the patches' γ and β, and hatched bars "
    "the additional effect of CLS's specialized γ and β, which do not affect patch–patch cosines."
)
METRICS = ("norm_differentiation",)

STAGES = {"centring": "centring (x − μ)", "gamma": "weight γ", "beta": "bias β"}

OWN = {"gamma": ("gamma_shared", "gamma_own"), "beta": ("beta_shared", "beta_own")}
"""The two parts that a stage of a specialized norm is split into."""

OWN_STAGES = {
    "gamma_shared": "weight γ (patches' γ if specialized)",
    "gamma_own": "specialized γ of CLS",
    "beta_shared": "bias β (patches' β if specialized)",
    "beta_own": "specialized β of CLS",
}
PARTS = (*STAGES, *OWN_STAGES, "total")
"""Parts of norm_differentiation that are drawn."""


def frame(
    analysis: Analysis, norms: str | Sequence[str] | None = None, groups: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the contribution of each stage, and the total, per norm, block and pair of groups.

    Args:
        norms: any of ``norm1``, ``norm2`` and ``final_norm``.
        groups: one or both of ``cls-patch`` and ``patch-patch``.

    Raises:
        NothingToDraw: if norm_differentiation was not computed, does not apply, or has no such norm or groups.
    """
    rows = rows_of_norms(analysis, "norm_differentiation", parts=PARTS, norms=norms, groups=groups)
    rows = rows.assign(stage=rows["part"], weights=weights_used(rows, analysis.table))
    return rows[["model", "metric", "norm", "norm_position", "group", "weights", "block", "stage", *NUMBERS]]


def weights_used(rows: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Return whose γ and β the tokens of each row of a table use: "one set", "patches'" or "CLS's and patches'"."""
    specialized = set(table[(table["metric"] == "norm_differentiation") & (table["part"] == "total_own")]["site"])
    return [
        "one set" if site not in specialized else "patches'" if group == "patch-patch" else "CLS's and patches'"
        for site, group in zip(rows["site"], rows["group"], strict=True)
    ]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw signed, stacked bars: a row of panels per pair of groups and a column per norm."""
    groups = sort_groups(frame["group"])
    page, panels = norm_panels(frame, ax, ("group", groups), (25, 46))
    for panel, _, _, inside in panels:
        stack(panel, inside)
        zero_line(panel)
    for first, group in zip(page.axes[:, 0], groups, strict=True):
        first.set_ylabel(f"fall of {group_title(group)} cosine")
    page.level()
    page.legend(stage_handles(frame))
    notes = ["mean over images; bar on the total: 95 % interval", _specialization_note(frame)]
    page.header(frame, " · ".join(filter(None, notes)))
    return page.figure


def _specialization_note(frame: pd.DataFrame) -> str:
    """Return a note about the weights of specialized norms; empty for a standard model."""
    if not (frame["weights"] != "one set").any():
        return ""
    added = frame.loc[frame["stage"].isin(["gamma_own", "beta_own"]), "value"]
    if not len(added):
        return "specialized norms: the patches' γ and β"
    note = "specialized norms: separate γ and β for CLS and patches"
    return note if (added != 0).any() else f"{note}, which are equal"


_TOTAL: dict[str, Any] = {"linestyle": "none", "marker": "D", "markersize": 3}
_TOTAL |= {"markerfacecolor": PAPER, "markeredgecolor": INK}


def stage_handles(frame: pd.DataFrame) -> list[Any]:
    """Return legend entries for the stages in a frame and for the total."""
    bars = []
    for stage in STAGES:
        parts = [part for part in OWN.get(stage, ()) if (frame["stage"] == part).any()]
        parts = parts or [stage] * bool((frame["stage"] == stage).any())
        bars += [Patch(label=(STAGES | OWN_STAGES)[part], **_bar(part)) for part in parts]
    return [*bars, Line2D([], [], label="total: before − after", **_TOTAL)]


def _bar(part: str) -> dict[str, Any]:
    """Return the look of a stage's bar; hatched for the effect of CLS's specialized weights."""
    look: dict[str, Any] = {"facecolor": STAGE_COLOURS[part.partition("_")[0]], "linewidth": 0}
    return look | {"hatch": "/////", "edgecolor": PAPER} if part.endswith("_own") else look


def stack(panel: Axes, inside: pd.DataFrame, x: str = "block") -> None:
    """Draw signed, stacked bars of the stages from zero outwards, and the total with its interval.

    ``x`` is the column with the positions of the bars, which are integers.
    """
    up: dict[int, float] = {}
    down: dict[int, float] = {}
    split = (inside["stage"] == "gamma_own").any()
    for part in [part for stage in STAGES for part in (OWN.get(stage, (stage,)) if split else (stage,))]:
        rows = inside[inside["stage"] == part].dropna(subset=["value"])
        if rows.empty:
            continue
        blocks = [int(block) for block in rows[x]]
        values = rows["value"].to_numpy(dtype=float)
        bottoms = np.array([(up if v >= 0 else down).get(b, 0.0) for b, v in zip(blocks, values, strict=True)])
        panel.bar(blocks, values, 0.72, bottom=bottoms, zorder=2, **_bar(part))
        for block, value, bottom in zip(blocks, values, bottoms, strict=True):
            (up if value >= 0 else down)[block] = float(bottom + value)
    total = inside[inside["stage"] == "total"]
    at, value, low, high = (total[name].to_numpy(dtype=float) for name in (x, "value", "ci_low", "ci_high"))
    panel.vlines(at, low, high, color=INK, linewidth=0.9, zorder=4)
    panel.plot(at, value, zorder=5, **_TOTAL)
