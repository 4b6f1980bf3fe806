"""Which stage of each norm moves the cosines: centring, the weight γ or the bias β."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tokenlens.figures._panels import depth_panels, norm_columns, zero_line
from tokenlens.figures._rows import in_order, norm_title, pair_title, place_of, rows_of
from tokenlens.figures.page import canvas, styled
from tokenlens.figures.style import INK, PAPER, STAGE_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenlens.analysis.analysis import Analysis

TITLE = "What each stage of the norm contributes"
ORDER = 20
CAPTION = (
    "The fall of the cosine across each norm, split exactly into the norm's stages: subtracting the mean (centring), "
    "the weight γ and the bias β. Dividing by σ cannot move a cosine. Bars add up to the total (diamond): above 0 "
    "the stage pulls apart, below 0 it brings together. RMSNorm has no centring. In a specialized norm CLS goes "
    "through a γ and β of its own and the patches through theirs: plain bars are what is left where CLS is given the "
    "patches' γ and β as well, hatched ones what CLS's own add to that. They change nothing among patches."
)
METRICS = ("norm_differentiation",)

STAGES = {"centring": "centring (x − μ)", "gamma": "weight γ", "beta": "bias β"}

OWN = {"gamma": ("gamma_shared", "gamma_own"), "beta": ("beta_shared", "beta_own")}
"""The two parts of a stage of a specialized norm, which add up to it."""

OWN_STAGES = {
    "gamma_shared": "weight γ (specialized: the patches')",
    "gamma_own": "CLS's own γ instead",
    "beta_shared": "bias β (specialized: the patches')",
    "beta_own": "CLS's own β instead",
}
PARTS = (*STAGES, *OWN_STAGES, "total")
"""The parts of norm_differentiation that are drawn."""


def frame(
    analysis: Analysis, norms: str | Sequence[str] | None = None, groups: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Contributions of the stages, and their total, per norm, block and pair of groups.

    Args:
        analysis: where the numbers come from.
        norms: only these of ``norm1``, ``norm2`` and ``final_norm``.
        groups: only these of ``cls-patch`` and ``patch-patch``.

    Raises:
        NothingToDraw: if norm_differentiation was not computed, does not apply, or has no such norm or groups.
    """
    rows = rows_of(analysis, "norm_differentiation", parts=PARTS, sites=norms, groups=groups)
    rows = rows.rename(columns={"part": "stage", "site": "norm"})
    rows["place"] = place_of(analysis)
    rows["weights"] = weights_used(rows, analysis.table)
    rows.loc[rows["norm"] == "final_norm", "block"] = analysis.blocks
    columns = ["model", "metric", "norm", "place", "group", "weights", "block", "stage", "value", "sd", "n", "ci_low"]
    return rows[[*columns, "ci_high", "unit"]].reset_index(drop=True)


def weights_used(rows: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """For rows of norms, whose γ and β their tokens go through: "one set", "patches'", or "CLS's and patches'".

    Args:
        rows: with the columns ``norm`` (or ``site``) and ``group``.
        table: of the analysis that they are from.
    """
    own = table[(table["metric"] == "norm_differentiation") & (table["part"] == "total_own")]
    specialized, sites = set(own["site"]), rows["norm" if "norm" in rows else "site"]
    return [
        "one set" if site not in specialized else "patches'" if group == "patch-patch" else "CLS's and patches'"
        for site, group in zip(sites, rows["group"], strict=True)
    ]


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: signed, stacked bars, a row of panels for each pair of groups and a column for each norm.

    Args:
        frame: of ``frame``.
        ax: as many Axes as there are panels; a new figure by default.
    """
    norms, widths = norm_columns(frame["norm"])
    groups = in_order(frame["group"])
    page = canvas(ax, len(groups), len(norms), 25 + 46 * len(groups), sharex="col", sharey="row", width_ratios=widths)
    down, across = ("group", groups), ("norm", norms)
    for panel, _, _, inside in depth_panels(page, frame, down, across, norm_title(frame), widths):
        stack(panel, inside)
        zero_line(panel)
    for first, group in zip(page.axes[:, 0], groups, strict=True):
        first.set_ylabel(f"fall of {pair_title(group)} cosine")
    page.level()
    page.legend(stage_handles(frame))
    notes = ["mean over images; bar on the total: 95 % interval", _sets_note(frame)]
    page.header(frame, " · ".join(filter(None, notes)))
    return page.figure


def _sets_note(frame: pd.DataFrame) -> str:
    """Whose weights specialized norms use; empty for a standard model."""
    if not (frame["weights"] != "one set").any():
        return ""
    own = frame.loc[frame["stage"].isin(["gamma_own", "beta_own"]), "value"]
    if not len(own):
        return "specialized norms: the patches' γ and β"
    said = "specialized norms: CLS goes through its own γ and β, the patches through theirs"
    return said if (own != 0).any() else f"{said}; both sets are equal, so that CLS's own add nothing"


_TOTAL: dict[str, Any] = {
    "linestyle": "none",
    "marker": "D",
    "markersize": 3,
    "markerfacecolor": PAPER,
    "markeredgecolor": INK,
}


def stage_handles(frame: pd.DataFrame) -> list[Any]:
    """The legend's entries for the stages that a frame has, and for their total."""
    bars = []
    for stage in STAGES:
        parts = [part for part in OWN.get(stage, ()) if (frame["stage"] == part).any()]
        for part in parts or [stage]:
            if (frame["stage"] == part).any():
                bars.append(Patch(label=(STAGES | OWN_STAGES)[part], **_bar(part)))
    return [*bars, Line2D([], [], label="total: before − after", **_TOTAL)]


def _bar(part: str) -> dict[str, Any]:
    """The look of a stage's bar; hatched for what CLS's own weights add."""
    look: dict[str, Any] = {"facecolor": STAGE_COLOURS[part.partition("_")[0]], "linewidth": 0}
    return look | {"hatch": "/////", "edgecolor": PAPER} if part.endswith("_own") else look


def stack(panel: Axes, inside: pd.DataFrame, place: str = "block", width: float = 0.72) -> None:
    """Signed, stacked bars of the stages from zero outwards, and the total with its interval.

    Args:
        panel: what to draw on.
        inside: rows with the columns ``stage``, ``value``, ``ci_low``, ``ci_high`` and ``place``.
        place: the column that says where on the x axis a bar stands; whole numbers.
        width: of a bar.
    """
    up: dict[int, float] = {}
    down: dict[int, float] = {}
    split = (inside["stage"] == "gamma_own").any()
    for part in [part for stage in STAGES for part in (OWN.get(stage, (stage,)) if split else (stage,))]:
        rows = inside[inside["stage"] == part].dropna(subset=["value"])
        if rows.empty:
            continue
        blocks = [int(block) for block in rows[place]]
        values = rows["value"].to_numpy(dtype=float)
        bottoms = np.array([(up if v >= 0 else down).get(b, 0.0) for b, v in zip(blocks, values, strict=True)])
        panel.bar(blocks, values, width, bottom=bottoms, zorder=2, **_bar(part))
        for block, value, bottom in zip(blocks, values, bottoms, strict=True):
            (up if value >= 0 else down)[block] = float(bottom + value)
    total = inside[inside["stage"] == "total"]
    x, y = total[place].to_numpy(dtype=float), total["value"].to_numpy(dtype=float)
    low, high = total["ci_low"].to_numpy(dtype=float), total["ci_high"].to_numpy(dtype=float)
    panel.vlines(x, low, high, color=INK, linewidth=0.9, zorder=4)
    panel.plot(x, y, zorder=5, **_TOTAL)
