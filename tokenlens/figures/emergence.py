"""Separation of CLS and patches during training, by block and step."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from tokenlens.figures._panels import (
    INTERVALS,
    block_ticks,
    colour_bar,
    heat_map,
    integer_ticks,
    line_look,
    zero_line,
)
from tokenlens.figures._rows import NUMBERS
from tokenlens.figures.base import NothingToDraw, group_title
from tokenlens.figures.page import Canvas, canvas, paper, styled
from tokenlens.figures.style import COLOURS, MARKERS, SEQUENTIAL, plain_number
from tokenlens.storage.tables import select_rows
from tokenlens.training.trained_run import TrainedRun

KIND = "training"
TITLE = "Separation of CLS and patches during training"
ORDER = 300
CAPTION = (
    "Diagnostics on a fixed batch of images during training. Left: fall of the CLS–patch cosine across the norm "
    "before attention in each block; above 0 the norm separates CLS and patches. Middle: CLS–patch cosine at the "
    "output of each block (resid_post). Right: mean norm of the tokens at the output of the last block."
)
METRICS = ("norm_differentiation", "cls_patch_cosine", "token_norm")

QUANTITIES = {
    "fall": {"metric": "norm_differentiation", "part": "total", "site": "norm1", "group": ("cls-patch",)},
    "cosine": {"metric": "cls_patch_cosine", "part": "", "site": "resid_post", "group": ("cls-patch",)},
    "norm": {"metric": "token_norm", "part": "mean", "site": "resid_post", "group": ("cls", "patch")},
}
"""Diagnostics drawn in each panel; token norms only of the last block."""

COLUMNS = ("model", "quantity", "metric", "part", "site", "group", "block", "step", *NUMBERS)
MOST_COLUMNS = 240
"""Largest number of columns in the heat map; more would only enlarge the file."""


def frame(run: TrainedRun) -> pd.DataFrame:
    """Return the diagnostics, one row per quantity, group, block and step.

    Args:
        run: a training whose recipe has ``diagnose_every`` above 0.

    Raises:
        NothingToDraw: if there are no diagnostics, or the model has no CLS and patches.
    """
    diagnostics = run.diagnostics
    if diagnostics.empty:
        raise NothingToDraw(
            f"there are no diagnostics in {run.path}: the recipe has diagnose_every={run.recipe.diagnose_every}. "
            "Train with --set diagnose_every=100 (steps)"
        )
    frames = []
    for quantity, wanted in QUANTITIES.items():
        rows = select_rows(diagnostics, **wanted)
        if quantity == "norm":
            rows = rows[rows["block"] == diagnostics["block"].max()].copy()
        rows["quantity"], rows["part"] = quantity, wanted["part"]
        frames.append(rows)
    found = pd.concat(frames)
    if found.empty:
        raise NothingToDraw(f"{run.recipe.model} in {run.path} has no CLS or no patches to compare")
    found["model"] = _title(run)
    found["block"] = found["block"].astype(int)
    found["quantity"] = pd.Categorical(found["quantity"], list(QUANTITIES))
    found = found.sort_values(["quantity", "group", "block", "step"], kind="stable")
    return found[list(COLUMNS)].astype({"quantity": str}).reset_index(drop=True)


def _title(run: TrainedRun) -> str:
    """Return the model's name and options, specialization, recipe and seed, and the step of an unfinished training."""
    recipe = run.recipe
    changed = ", ".join(f"{key} {value}" for key, value in recipe.model_options.items())
    parts = [f"{recipe.model} ({changed})" if changed else recipe.model]
    if recipe.specialization is not None:
        parts.append(f"specialized ({recipe.specialization if isinstance(recipe.specialization, str) else 'custom'})")
    done = "" if run.finished else f", {run.state} at step {run.step} of {run.settings['steps']}"
    return f"{', '.join(parts)} · recipe {run.settings['name']}, seed {recipe.seed}{done}"


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw the norm's differentiation by block and step, cosines over steps, and token norms of the last block."""
    present = [name for name in QUANTITIES if name in set(frame["quantity"])]
    narrow = paper().narrow and ax is None
    rows, columns = (len(present), 1) if narrow else (1, len(present))
    page = canvas(ax, rows, columns, 12 + 50 * rows if narrow else 62)
    scale = 1000 if frame["step"].max() >= 20_000 else 1
    frame = frame.assign(at=frame["step"] / scale)
    draw = {"fall": _fall, "cosine": _cosine, "norm": _norm}
    share = 0.8 / columns  # of the width, without the colour bars
    for panel, name in zip(page.axes.flat, present, strict=True):
        title = draw[name](page, panel, frame[frame["quantity"] == name])
        page.title(panel, title, share)
        if frame["at"].nunique() == 1:
            panel.set_xlim(frame["at"].iloc[0] - 0.5, frame["at"].iloc[0] + 0.5)
        panel.set_xlabel("step" if scale == 1 else "step [thousands]")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=scale == 1))
        panel.xaxis.set_major_formatter(FuncFormatter(plain_number))
    page.header(frame, INTERVALS.replace("bands and bars", "bands"))
    return page.figure


def _fall(page: Canvas, panel: Axes, rows: pd.DataFrame) -> str:
    """Draw block × step, red if the norm separates CLS and patches and blue if not; return the title."""
    table = rows.pivot(index="block", columns="at", values="value")
    steps, values = table.columns.to_numpy(dtype=float), table.to_numpy(dtype=float)
    high = max(float(np.nanmax(np.abs(values))), 1e-6)
    column, edges = _even(steps)
    image = heat_map(panel, values[:, column], -high, high, diverging=True)
    image.set_extent((*edges, len(values) - 0.5, -0.5))
    block_ticks(panel, table.index, 13)
    panel.set_ylabel("block")
    colour_bar(page.figure, image, panel, "cosine before − after", fraction=0.08, pad=0.02)
    return "fall of CLS–patch cosine across norm1"


def _even(steps: NDArray[np.float64]) -> tuple[NDArray[np.intp], tuple[float, float]]:
    """Return the index of the nearest step for each of evenly spaced columns, and the outer edges of the columns.

    >>> _even(np.array([0.0, 10.0, 20.0, 25.0]))
    (array([0, 0, 1, 1, 2, 3]), (-2.5, 27.5))
    """
    if len(steps) == 1:
        return np.array([0]), (steps[0] - 0.5, steps[0] + 0.5)
    span = steps[-1] - steps[0]
    count = min(round(span / np.diff(steps).min()) + 1, MOST_COLUMNS)
    at = np.linspace(steps[0], steps[-1], count)
    nearest = np.abs(at[:, None] - steps).argmin(axis=1)
    half = span / (count - 1) / 2
    return nearest, (float(steps[0] - half), float(steps[-1] + half))


def _cosine(page: Canvas, panel: Axes, rows: pd.DataFrame) -> str:
    """Draw a line per block, from dark (first) to light (last); return the title."""
    blocks = sorted(rows["block"].unique())
    # Leave out the end of cividis, a yellow that is hard to see on white.
    shades = LinearSegmentedColormap.from_list("blocks", matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 0.9, 64)))
    number = BoundaryNorm(np.arange(blocks[0] - 0.5, blocks[-1] + 1), shades.N) if len(blocks) > 1 else None
    for block in blocks:
        mine = rows[rows["block"] == block]
        colour = COLOURS["cls-patch"] if number is None else shades(number(block))
        panel.plot(
            mine["at"],
            mine["value"],
            color=colour,
            marker="." if len(mine) == 1 else "",
            linewidth=1.2 if len(blocks) < 13 else 0.7,
        )
    zero_line(panel)
    panel.grid(axis="y")
    panel.set_ylabel("cosine")
    if number is not None:
        ticks = [blocks[tick] for tick in integer_ticks(len(blocks), 13)]
        colour_bar(page.figure, ScalarMappable(number, shades), panel, "block", fraction=0.08, pad=0.02, ticks=ticks)
        bar = page.figure.axes[-1]
        bar.invert_yaxis()  # the first block at the top, as in the matrix
        bar.minorticks_off()
    return "CLS–patch cosine at resid_post"


def _norm(page: Canvas, panel: Axes, rows: pd.DataFrame) -> str:
    """Draw lines with intervals for CLS and for the patches; return the title."""
    for group in ("cls", "patch"):
        mine = rows[rows["group"] == group]
        if mine.empty:
            continue
        panel.fill_between(mine["at"], mine["ci_low"], mine["ci_high"], color=COLOURS[group], alpha=0.2, linewidth=0)
        look = line_look(COLOURS[group], MARKERS[group])
        panel.plot(mine["at"], mine["value"], markevery=1 + len(mine) // 9, label=group_title(group), **look)
    panel.set_ylim(bottom=0)
    panel.grid(axis="y")
    panel.set_ylabel("norm")
    panel.legend()
    return f"token norm after the last block ({rows['block'].iloc[0]})"
