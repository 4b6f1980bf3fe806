"""Draw seeds and means of the variants in a verification."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tokenlens.figures._panels import legend_handle
from tokenlens.figures.page import Canvas, canvas, paper
from tokenlens.figures.style import PAPER, sort_variants, variant_look
from tokenlens.verification.numbers import CLASSES, DENSE

PROBED = {DENSE: "mean IoU", CLASSES: "accuracy"}
"""Measures of the probes, with their titles."""


def variant_lines(names: Iterable[str]) -> list[Line2D]:
    """Return legend entries with each variant's colour and dashes."""
    return [Line2D([], [], label=name, linewidth=1.8, **_line(name)) for name in names]


def variant_handles(names: Iterable[str]) -> list[Line2D]:
    """Return legend entries with each variant's colour and marker."""
    return [legend_handle(name, variant_look(name)["color"], variant_look(name)["marker"]) for name in names]


def seed_lines(panel: Axes, rows: pd.DataFrame, column: str, mean: bool = True) -> None:
    """Draw a column over training steps: for each variant a thin line per seed, and a thick one for their mean."""
    for variant in sort_variants(rows["variant"]):
        mine = rows[rows["variant"] == variant].dropna(subset=[column])
        for _, run in mine.groupby("seed"):
            panel.plot(run["step"], run[column], linewidth=0.6, alpha=0.6, **_line(variant))
        if mean and mine["seed"].nunique() > 1:
            means = mine.groupby("step")[column].mean()
            panel.plot(means.index, means, linewidth=1.8, **_line(variant))
    panel.grid(axis="y")
    panel.set_xlabel("step")


def _line(name: str) -> dict[str, Any]:
    return {key: variant_look(name)[key] for key in ("color", "linestyle")}


def setting_panels(
    frame: pd.DataFrame, ax: Any, columns: Sequence[str], height_mm: tuple[float, float]
) -> tuple[Canvas, list[tuple[Axes, str, pd.DataFrame]]]:
    """Create a row of panels per setting; in a narrow figure all panels are below each other.

    Args:
        frame: numbers with the column ``setting``.
        ax: as for ``canvas``.
        columns: what the panels of a row show.
        height_mm: height of the figure without panels, and of each row of panels.

    Returns:
        The canvas; and for each panel its axes, its column, and the rows of its setting.
    """
    shown = [(name, frame[frame["setting"] == setting]) for setting in _settings(frame) for name in columns]
    across = 1 if paper().narrow and ax is None else len(columns)
    down = len(shown) // across
    page = canvas(ax, down, across, height_mm[0] + height_mm[1] * down)
    return page, [(panel, name, rows) for panel, (name, rows) in zip(page.axes.flat, shown, strict=True)]


def variants_note(page: Canvas, frame: pd.DataFrame, *more: str) -> None:
    """Write the settings, the number of seeds and further texts at the top of a figure."""
    count = int(frame["seed"].nunique())
    page.note(" · ".join([*_settings(frame), f"{count} seed{'s' if count != 1 else ''}", *more]))


def _settings(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame["setting"]))


def probe_panels(
    frame: pd.DataFrame, ax: Any, variants: Sequence[str]
) -> tuple[Canvas, list[tuple[Axes, str, pd.DataFrame]]]:
    """Return ``setting_panels`` with a panel for each measure of the probes, and its rows of the frame."""
    measures = [measure for measure in PROBED if measure in set(frame["measure"])]
    probes = max(frame[frame["measure"] == measure]["cell"].nunique() for measure in measures)
    page, panels = setting_panels(frame, ax, measures, (10, 18 + probes * (7 + 4 * len(variants))))
    return page, [(panel, measure, rows[rows["measure"] == measure]) for panel, measure, rows in panels]


def probe_labels(rows: pd.DataFrame) -> pd.Series:
    """Return a label for the probe behind each row, such as "segmentation patches 64 px"."""
    return rows["task"] + " " + rows["source"] + " " + rows["resolution"].astype(str) + " px"


def dots_and_means(
    panel: Axes, rows: pd.DataFrame, variants: list[str], lines: tuple[str, Mapping[str, str]], column: str, unit: str
) -> None:
    """Draw, for each variant, a small dot per seed and the mean over seeds with its interval.

    Args:
        panel: the axes to draw on.
        rows: a row with a ``seed`` is a dot; the row without one is the mean, with ``ci_low`` and ``ci_high``.
        variants: the variants from top to bottom within a line.
        lines: the column of ``rows`` with a line of the panel for each value, and the values with their titles.
        column: the column with the numbers.
        unit: label of the horizontal axis.
    """
    by, titles = lines
    for y, name in enumerate(titles):
        _line_of_dots(panel, rows[rows[by] == name], variants, y, column)
    panel.set_yticks(range(len(titles)), list(titles.values()))
    panel.set_ylim(len(titles) - 0.5, -0.5)
    panel.grid(axis="x")
    panel.set_xlabel(unit)


def _line_of_dots(panel: Axes, rows: pd.DataFrame, variants: list[str], y: float, column: str) -> None:
    step = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        at = y + (number - (len(variants) - 1) / 2) * step
        mine, look = rows[rows["variant"] == variant], variant_look(variant)
        dots = mine[mine["seed"].notna()][column].to_numpy(dtype=float)
        dot: dict[str, Any] = {"marker": "o", "markersize": 3, "alpha": 0.75, "markeredgewidth": 0, "zorder": 3}
        panel.plot(dots, np.full(len(dots), at + 0.22 * step), linestyle="", color=look["color"], **dot)
        for mean in mine[mine["seed"].isna()].to_dict("records"):
            low, high, below = mean["ci_low"], mean["ci_high"], at - 0.12 * step
            panel.hlines(below, low, high, color=look["color"], linewidth=1.4, zorder=4)
            large: dict[str, Any] = {"markersize": 5, "markeredgecolor": PAPER, "markeredgewidth": 0.6, "zorder": 5}
            panel.plot([mean[column]], [below], linestyle="", marker=look["marker"], color=look["color"], **large)


def probe_title(label: str) -> str:
    """Return the label of a probe as it is written on an axis."""
    label = label.replace("segmentation patches", "segmentation")
    return label.replace("patch_mean", "mean patch").replace("cls", "CLS")
