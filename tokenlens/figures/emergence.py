"""When and where CLS and patches part while a model is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from tokenlens.figures._panels import INTERVALS, colour_bar, heat_map, line_look, plain_number, whole_ticks, zero_line
from tokenlens.figures._rows import pair_title
from tokenlens.figures.base import TRAINING, NothingToDraw
from tokenlens.figures.page import Canvas, canvas, paper, styled
from tokenlens.figures.style import COLOURS, MARKERS, SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.training.run import TrainedRun

TITLE = "When and where CLS and patches part"
ORDER = 300
OF = TRAINING
CAPTION = (
    "A fixed batch of images, looked at again and again while the model is trained. Left: how far the norm before "
    "attention lowers the cosine of CLS and patches, in every block; above 0 it pulls them apart. Middle: their cosine "
    "in what leaves a block (resid_post). Right: how long the tokens are that leave the last block."
)
METRICS = ("norm_differentiation", "cls_patch_cosine", "token_norm")

QUANTITIES = {
    "fall": {"metric": "norm_differentiation", "part": "total", "site": "norm1", "group": ("cls-patch",)},
    "cosine": {"metric": "cls_patch_cosine", "part": "", "site": "resid_post", "group": ("cls-patch",)},
    "norm": {"metric": "token_norm", "part": "mean", "site": "resid_post", "group": ("cls", "patch")},
}
"""The rows of the diagnostics that each panel draws; of the norms those of the last block."""

COLUMNS = (
    "model",
    "quantity",
    "metric",
    "part",
    "site",
    "group",
    "block",
    "step",
    "value",
    "sd",
    "n",
    "ci_low",
    "ci_high",
    "unit",
)
MOST_COLUMNS = 240
"""Of the heat map: more than a page has dots for would only make the file large."""


def frame(run: TrainedRun) -> pd.DataFrame:
    """The diagnostics that are drawn: a row for each quantity, group, block and step.

    Args:
        run: of a training whose recipe has ``diagnose_every`` above 0.

    Raises:
        NothingToDraw: if nothing was diagnosed, or the model has no CLS and patches.
    """
    told = run.diagnostics
    if told.empty:
        raise NothingToDraw(
            f"nothing was diagnosed in {run.path}: the recipe has diagnose_every={run.recipe.diagnose_every}. "
            "Train with --set diagnose_every=100 (steps)"
        )
    frames = []
    for quantity, wanted in QUANTITIES.items():
        rows = told[
            (told["metric"] == wanted["metric"])
            & (told["part"] == wanted["part"])
            & (told["site"] == wanted["site"])
            & told["group"].isin(wanted["group"])
        ].copy()
        if quantity == "norm":
            rows = rows[rows["block"] == told["block"].max()]
        rows["quantity"], rows["part"] = quantity, wanted["part"]
        frames.append(rows)
    found = pd.concat(frames)
    if found.empty:
        raise NothingToDraw(f"{run.recipe.model} has no CLS or no patches to tell apart in {run.path}")
    found["model"] = name_of(run)
    found["block"] = found["block"].astype(int)
    found["quantity"] = pd.Categorical(found["quantity"], list(QUANTITIES))
    found = found.sort_values(["quantity", "group", "block", "step"], kind="stable")
    return found[list(COLUMNS)].astype({"quantity": str}).reset_index(drop=True)


def name_of(run: TrainedRun) -> str:
    """The model's full name, what is changed in it, by which recipe it is trained, and how far where it is not done."""
    recipe = run.recipe
    changed = ", ".join(f"{key} {value}" for key, value in recipe.model_options.items())
    told = [f"{recipe.model} ({changed})" if changed else recipe.model]
    if recipe.specialization is not None:
        told.append(f"specialized ({recipe.specialization if isinstance(recipe.specialization, str) else 'own'})")
    done = "" if run.finished else f", {run.state} at step {run.step} of {run.settings['steps']}"
    return f"{', '.join(told)} · recipe {run.settings['name']}, seed {recipe.seed}{done}"


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: differentiation by the norm as block × step, cosines over steps, norms of the last block's tokens.

    Args:
        frame: of ``frame``.
        ax: one Axes for each of the three panels, or as many as the frame has quantities; a new figure by default.
    """
    present = [name for name in QUANTITIES if name in set(frame["quantity"])]
    narrow = paper().narrow and ax is None
    rows, columns = (len(present), 1) if narrow else (1, len(present))
    page = canvas(ax, rows, columns, 12 + 50 * rows if narrow else 62)
    scale = 1000 if frame["step"].max() >= 20_000 else 1
    frame = frame.assign(at=frame["step"] / scale)
    draw = {"fall": _fall, "cosine": _cosine, "norm": _norm}
    share = 0.8 / columns  # of the width; the rest is the colour bars'
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
    """Block × step, red where the norm pulls CLS and patches apart and blue where it brings them closer; the title."""
    table = rows.pivot(index="block", columns="at", values="value")
    steps, values = table.columns.to_numpy(dtype=float), table.to_numpy(dtype=float)
    high = max(float(np.nanmax(np.abs(values))), 1e-6)
    column, edges = _even(steps)
    image = heat_map(panel, values[:, column], -high, high, diverging=True)
    image.set_extent((*edges, len(values) - 0.5, -0.5))
    ticks = whole_ticks(len(values), 13)
    panel.set_yticks(ticks, [str(table.index[tick]) for tick in ticks])
    panel.set_ylabel("block")
    colour_bar(page.figure, image, panel, "cosine before − after", fraction=0.08, pad=0.02)
    return "fall of CLS–patch cosine across norm1"


def _even(steps: NDArray[np.float64]) -> tuple[NDArray[np.intp], tuple[float, float]]:
    """Which diagnosed step each of evenly spaced columns shows, the nearest one, and where the columns begin and end.

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
    """A line for each block, the first one's darkest; the title."""
    blocks = sorted(rows["block"].unique())
    # cividis ends in a yellow that is hard to see on white
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
        ticks = [blocks[tick] for tick in whole_ticks(len(blocks), 13)]
        colour_bar(page.figure, ScalarMappable(number, shades), panel, "block", fraction=0.08, pad=0.02, ticks=ticks)
        bar = page.figure.axes[-1]
        bar.invert_yaxis()  # the first block on top, as in the matrix
        bar.minorticks_off()
    return "CLS–patch cosine at resid_post"


def _norm(page: Canvas, panel: Axes, rows: pd.DataFrame) -> str:
    """A line with its interval for CLS and for the patches; the title."""
    for group in ("cls", "patch"):
        mine = rows[rows["group"] == group]
        if mine.empty:
            continue
        panel.fill_between(mine["at"], mine["ci_low"], mine["ci_high"], color=COLOURS[group], alpha=0.2, linewidth=0)
        look = line_look(COLOURS[group], MARKERS[group])
        panel.plot(mine["at"], mine["value"], markevery=1 + len(mine) // 9, label=pair_title(group), **look)
    panel.set_ylim(bottom=0)
    panel.grid(axis="y")
    panel.set_ylabel("norm")
    panel.legend()
    return f"token norm after the last block ({rows['block'].iloc[0]})"
