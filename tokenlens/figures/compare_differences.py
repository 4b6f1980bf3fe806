"""What differs most from the baseline: standardized differences with their intervals, the largest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tokenlens.figures._models import colour_of, comparison_note, model_look, names_of, numbers_of
from tokenlens.figures._panels import plain_number
from tokenlens.figures._rows import listed, quantity_title
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import canvas, characters, paper, styled, wrapped
from tokenlens.figures.style import FAINT, GRID, INK, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenlens.comparison.comparison import Comparison

OF = "comparison"
TITLE = "What differs most"
ORDER = 210
CAPTION = (
    "Differences from the baseline of numbers averaged over blocks, in units of the pooled standard deviation over "
    "images (Cohen's d; linear within ±1, logarithmic beyond), with 95 % intervals, the largest first. Of each "
    "metric, part and group the site that differs most is shown. Faint, hollow: does not exceed the noise "
    "(Benjamini–Hochberg q ≥ 0.05). On the right the difference itself, of the model that differs most."
)
METRICS = ()
"""All metrics with a value per image."""

MOST = {"double": 18, "single": 14}
"""How many lines are readable."""


def frame(comparison: Comparison, count: int | None = None, metrics: str | Sequence[str] | None = None) -> pd.DataFrame:
    """The quantities that differ most, and how far each model is from the baseline in each of them.

    Args:
        comparison: where the numbers come from.
        count: how many quantities; by default as many as can be read.
        metrics: of these metrics only.

    Raises:
        NothingToDraw: if no difference can be put in units of a spread over images.
        ValueError: for a count below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"count is at least 1, got {count}")
    rows = comparison.summary
    if metrics is not None:
        rows = rows[rows["metric"].isin(listed(metrics))]
    rows = rows[np.isfinite(rows["effect"].astype(float)) & rows["difference"].notna()].copy()
    if rows.empty:
        which = "any metric" if metrics is None else ", ".join(listed(metrics))
        raise NothingToDraw(f"no difference of {which} can be put in units of a spread over images")
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = rows["difference"] / rows["effect"]
        rows["effect_low"], rows["effect_high"] = rows["ci_low"] / deviation, rows["ci_high"] / deviation
    same = (rows["effect"] == 0) | ~np.isfinite(rows["effect_low"] + rows["effect_high"])
    rows.loc[same, ["effect_low", "effect_high"]] = np.nan
    rows["model_number"] = rows["label"].map(numbers_of(comparison))
    quantity, where = ["metric", "part", "group"], ["metric", "part", "group", "site"]
    rows["size"] = rows["effect"].abs() + 1e9 * rows["significant"].astype(float)  # what exceeds the noise comes first
    largest = rows.groupby(where, sort=False, as_index=False)["size"].max()
    largest = largest.sort_values("size", ascending=False, kind="stable").drop_duplicates(quantity)
    chosen = largest.head(MOST["double"] if count is None else count).reset_index(drop=True)
    chosen["place"] = np.arange(len(chosen))
    found = rows.merge(chosen[[*where, "place"]], on=where)
    columns = [
        "place",
        "label",
        "model_number",
        "baseline",
        *where,
        "effect",
        "effect_low",
        "effect_high",
        "value",
        "baseline_value",
        "difference",
        "ci_low",
        "ci_high",
        "p",
        "q",
        "n",
        "n_baseline",
        "test",
        "unit",
        "significant",
    ]
    return found.sort_values(["place", "model_number"])[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: a line for each quantity, a marker for each model.

    Args:
        frame: of ``frame``.
        ax: one Axes; a new figure by default.
    """
    if paper().narrow:
        frame = frame[frame["place"] < MOST["single"]]
    places = sorted(frame["place"].unique())
    numbers = sorted(frame["model_number"].unique())
    room = characters(0.40 * paper().width if paper().narrow else 0.42 * paper().width, "small")
    labels = [wrapped(quantity_title(frame[frame["place"] == place].iloc[0]), room) for place in places]
    lines = max(max(label.count("\n") + 1 for label in labels), 0.7 * len(numbers))
    page = canvas(ax, 1, 1, 22 + len(places) * (1.6 + 2.3 * lines))
    panel = page.axes[0, 0]
    for index, number in enumerate(numbers):
        shift = (index - (len(numbers) - 1) / 2) * 0.7 / len(numbers)
        _points(panel, frame[frame["model_number"] == number], int(number), shift)
    panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
    for place in places:
        panel.axhline(place, color=GRID, linewidth=0.5, zorder=0)
    panel.set_ylim(max(places) + 0.6, min(places) - 0.6)
    panel.set_yticks(places, labels, fontsize="small", linespacing=1.1)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    _effect_axis(panel, frame)
    panel.set_xlabel("difference / SD over images (Cohen's d)")
    for place in places:
        inside = frame[frame["place"] == place]
        row = inside.loc[inside["effect"].abs().idxmax()]
        panel.text(
            1.02,
            place,
            _difference(row),
            transform=panel.get_yaxis_transform(),
            va="center",
            fontsize="small",
            color=INK if row["significant"] else FAINT,
        )
    full = names_of(frame)
    page.legend(full.handles(), columns=2)
    count = int(frame["significant"].sum())
    note = f"against {frame['baseline'].iloc[0]} · means over blocks; bars: 95 % interval · {count} of {len(frame)} "
    comparison_note(page, frame, note + ("has q < 0.05" if count == 1 else "have q < 0.05"))
    return page.figure


def _points(panel: Axes, rows: pd.DataFrame, number: int, shift: float) -> None:
    """One model's differences with their intervals, faint where they do not exceed the noise."""
    for sure in (True, False):
        part = rows[rows["significant"] == sure]
        y = part["place"].to_numpy(dtype=float) + shift
        x, low, high = (part[name].to_numpy(dtype=float) for name in ("effect", "effect_low", "effect_high"))
        alpha = 1.0 if sure else 0.45
        panel.hlines(y, low, high, color=colour_of(number), linewidth=1.0, alpha=alpha, zorder=3)
        look = {**model_look(number), "linestyle": "none", "alpha": alpha}
        panel.plot(x, y, zorder=4, **(look if sure else {**look, "markerfacecolor": PAPER}))


def _effect_axis(panel: Axes, frame: pd.DataFrame) -> None:
    """Linear within ±1, logarithmic beyond: differences of 0.3 and of 30 spreads stand in one figure."""
    values = frame[["effect", "effect_low", "effect_high"]].to_numpy(dtype=float)
    low, high = min(float(np.nanmin(values)), 0.0), max(float(np.nanmax(values)), 0.0)
    reach = max(-low, high, 1.0)
    panel.set_xscale("symlog", linthresh=1.0, linscale=0.6)
    decades = [10.0**power for power in range(0, int(np.ceil(np.log10(reach))) + 1)]
    steps = decades if len(decades) > 2 else [0.5, 1.0, 2.0, 5.0, 10.0]
    if low < -0.5 and high > 0.5 and paper().narrow:
        steps = decades
    ticks = [sign * step for step in steps for sign in (-1, 1) if low * 1.3 - 0.1 <= sign * step <= high * 1.3 + 0.1]
    panel.xaxis.set_major_locator(FixedLocator(sorted({0.0, *ticks})))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(plain_number))
    panel.set_xlim(low * 1.25 - 0.15, high * 1.25 + 0.15)


def _difference(row: pd.Series) -> str:
    """The difference itself, with a sign."""
    value = float(row["difference"])
    text = f"{value:+.2g}" if abs(value) < 1e4 else f"{value:+.1e}"
    return text.replace("-", "−").replace("e+0", "e")
