"""Similarity (CKA) of final features between models, for CLS and for the mean patch."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tokenlens.comparison.comparison import Comparison
from tokenlens.figures._comparison_panels import ink_on
from tokenlens.figures._comparison_rows import comparison_note, numbers_of
from tokenlens.figures._model_labels import ModelLabels, letter_of, model_labels
from tokenlens.figures._panels import colour_bar, heat_map
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import canvas, characters, paper, points, styled
from tokenlens.figures.style import COLOURS, GRID, INK, MARKERS, SEQUENTIAL

KIND = "comparison"
TITLE = "Similarity of final features between models"
ORDER = 260
CAPTION = (
    "Debiased linear CKA between the final features of two models on the same images: 1 if they arrange the images "
    "in the same way, about 0 if they are unrelated. In brackets: 95 % interval (jackknife over images)."
)
METRICS = ("cka",)

GROUP_NAMES = {"cls": "CLS", "patch": "mean patch"}


def frame(comparison: Comparison) -> pd.DataFrame:
    """Return CKA per group and pair of models, each pair once.

    Raises:
        NothingToDraw: if the models did not see the same images, or cka was not computed for two of them.
    """
    rows = comparison.similarity
    if rows.empty or rows["value"].isna().all():
        reason = comparison.similarity_note or "their CKA is not defined"
        raise NothingToDraw(f"no two models' features can be compared: {reason}")
    numbers = numbers_of(comparison)
    rows = rows[rows["value"].notna()].copy()
    rows["number_1"], rows["number_2"] = rows["label_1"].map(numbers), rows["label_2"].map(numbers)
    rows = rows[rows["number_1"] < rows["number_2"]]
    rows["left_out"] = str(comparison.similarity_note or "").rstrip(".")
    columns = ["label_1", "label_2", "number_1", "number_2", "group", "value", "ci_low", "ci_high", "n", "unit"]
    return rows.sort_values(["group", "number_1", "number_2"])[[*columns, "left_out"]].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a matrix of the models per group; two models get an axis with a line per group instead."""
    if is_pair(frame):
        page = canvas(ax, 1, 1, 40)
        draw_pair(page.axes[0, 0], frame)
        models = " and ".join(str(frame[name].iloc[0]) for name in ("label_1", "label_2"))
        comparison_note(page, frame, f"{models} · final features; bars and [ ]: 95 % interval")
        return page.figure
    groups = [group for group in GROUP_NAMES if (frame["group"] == group).any()]
    names = similarity_names(frame)
    count, narrow = len(names.full), paper().narrow
    below = narrow and ax is None and count > 4
    shape = (len(groups), 1) if below else (1, len(groups))
    side = min((0.66 if below else 0.72 / len(groups)) * paper().width / (count - 1), 20.0)
    page = canvas(ax, *shape, 20 + shape[0] * (9 + (count - 1) * side))
    image = None
    for panel, group in zip(page.axes.flat, groups, strict=True):
        image = matrix(panel, frame[frame["group"] == group], names, side)
        page.title(panel, f"{GROUP_NAMES[group]} features")
    assert image is not None
    colour_bar(page.figure, image, list(page.axes.flat), "CKA", aspect=24, ticks=[0, 0.25, 0.5, 0.75, 1])
    page.legend(names.handles(lines=False), columns=2)
    comparison_note(page, frame, "final features; [ ]: 95 % interval")
    return page.figure


def is_pair(frame: pd.DataFrame) -> bool:
    """Return whether only two models are compared, so that a matrix would have a single square."""
    return len(frame[["number_1", "number_2"]].drop_duplicates()) == 1


def draw_pair(panel: Axes, frame: pd.DataFrame) -> None:
    """Draw the CKA of two models for each group, with its interval and as a number."""
    groups = [group for group in GROUP_NAMES if (frame["group"] == group).any()]
    labels = []
    for y, group in enumerate(groups):
        row = frame[frame["group"] == group].iloc[0]
        text = f"{row['value']:.2f}"
        if np.isfinite(row["ci_low"] + row["ci_high"]):
            text += f" [{row['ci_low']:.2f},\u2009{row['ci_high']:.2f}]"
            panel.hlines(y, row["ci_low"], row["ci_high"], color=COLOURS[group], linewidth=1.0, zorder=3)
        panel.plot([row["value"]], [y], color=COLOURS[group], marker=MARKERS[group], zorder=4)
        labels.append(f"{GROUP_NAMES[group]}\n{text}".replace("-", "−"))
    panel.set_yticks(range(len(groups)), labels)
    panel.set_ylim(len(groups) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    low = float(np.nanmin(frame[["value", "ci_low"]].to_numpy(dtype=float)))
    panel.set_xlim(min(0.0, low - 0.05), 1.0)
    panel.grid(axis="x")
    panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
    panel.set_xlabel("CKA")


def similarity_names(frame: pd.DataFrame) -> ModelLabels:
    """Return the labels of the models in the frame, as letters."""
    pairs = [frame[[f"label_{i}", f"number_{i}"]].set_axis(["label", "model_number"], axis=1) for i in (1, 2)]
    return model_labels(pd.concat(pairs), lettered=True)


def matrix(panel: Axes, rows: pd.DataFrame, names: ModelLabels, square_mm: float) -> AxesImage:
    """Draw the lower triangle of a models × models matrix with its numbers, and intervals if there is room."""
    numbers = list(names.full)
    index_of = {number: index for index, number in enumerate(numbers)}
    values = np.full((len(numbers) - 1,) * 2, np.nan)  # without the first model's row and the last one's column
    image = heat_map(panel, values, 0, 1)
    panel.set_aspect("equal")
    colours = matplotlib.colormaps[SEQUENTIAL]
    interval = characters(square_mm, "small") >= 11
    for row in rows.itertuples(index=False):
        x, y = index_of[row.number_1], index_of[row.number_2] - 1
        values[y, x] = row.value
        ink = ink_on(colours, float(np.clip(row.value, 0, 1)))
        text = f"{row.value:.2f}".replace("-", "−")
        if characters(square_mm, "small") < 5:
            text = text.replace("0.", ".")
        if interval and np.isfinite(row.ci_low + row.ci_high):
            text += f"\n[{row.ci_low:.2f},\u2009{row.ci_high:.2f}]".replace("-", "−")
        size = "small" if characters(square_mm, "small") >= 4 else max(points("small") * 0.9, 5.5)
        panel.text(x, y, text, ha="center", va="center", color=ink, fontsize=size, linespacing=1.3)
    image.set_data(values)
    ticks = [letter_of(number) for number in numbers]
    panel.set_xticks(range(len(numbers) - 1), ticks[:-1])
    panel.set_yticks(range(len(numbers) - 1), ticks[1:])
    panel.tick_params(length=0)
    panel.set_facecolor("none")
    for edge in range(len(numbers)):
        panel.axhline(edge - 0.5, color=GRID, linewidth=0.5, zorder=0)
        panel.axvline(edge - 0.5, color=GRID, linewidth=0.5, zorder=0)
    return image
