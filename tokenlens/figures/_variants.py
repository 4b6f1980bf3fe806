"""How the variants of a verification look, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tokenlens.figures._models import model_look
from tokenlens.figures._panels import handle
from tokenlens.figures.style import MODEL_COLOURS, PAPER
from tokenlens.verification.numbers import CLASSES, DENSE

PROBED = {DENSE: "mean IoU", CLASSES: "accuracy"}
"""What probes measure, by the name in the numbers, and a panel's title for it."""

_LOOKS = {
    "standard": (0, 0),
    "twin": (0, 1),
    "paper": (1, 0),
    "everything": (1, 1),
    "norms": (2, 0),
    "qkv_first_third": (4, 0),
    "qkv_all": (4, 1),
    "mlp": (3, 0),
    "proj": (5, 0),
}
"""Each variant's colour, which relatives share, and which of them it is (by dashes and markers), in order."""


def variants_in_order(names: Iterable[str]) -> list[str]:
    """Standard and paper first."""
    there = set(names)
    return [name for name in _LOOKS if name in there] + sorted(there - set(_LOOKS))


def variant_look(name: str) -> dict[str, Any]:
    """Colour, dashes and marker: the same ones in every figure."""
    number, relative = _LOOKS.get(name, (len(MODEL_COLOURS) - 1, 1))
    return model_look(number + relative * len(MODEL_COLOURS))


def variant_lines(names: Iterable[str]) -> list[Line2D]:
    """Entries of a legend with each variant's colour and dashes."""
    return [Line2D([], [], label=name, linewidth=1.8, **_line(name)) for name in names]


def variant_handles(names: Iterable[str]) -> list[Line2D]:
    """Entries of a legend with each variant's colour and marker."""
    return [handle(name, variant_look(name)["color"], variant_look(name)["marker"]) for name in names]


def seed_lines(panel: Axes, rows: pd.DataFrame, variant: str, column: str, mean: bool = True) -> None:
    """A thin line over steps for each seed of a variant, and a thick one for their mean.

    Args:
        panel: what to draw on.
        rows: with ``variant``, ``seed`` and ``step``.
        variant: whose rows are drawn.
        column: of the numbers.
        mean: draw the mean too.
    """
    mine = rows[rows["variant"] == variant].dropna(subset=[column])
    for _, run in mine.groupby("seed"):
        panel.plot(run["step"], run[column], linewidth=0.6, alpha=0.6, **_line(variant))
    if mean and mine["seed"].nunique() > 1:
        means = mine.groupby("step")[column].mean()
        panel.plot(means.index, means, linewidth=1.8, **_line(variant))


def _line(name: str) -> dict[str, Any]:
    return {key: variant_look(name)[key] for key in ("color", "linestyle")}


def probed_cell(rows: pd.DataFrame) -> pd.Series:
    """What was measured, as one word for each row of the numbers: "segmentation patches 64 px"."""
    return rows["task"] + " " + rows["source"] + " " + rows["resolution"].astype(str) + " px"


def dots_and_means(panel: Axes, rows: pd.DataFrame, variants: list[str], place: float, column: str) -> None:
    """Around one height of a panel, for each variant: a small dot for each seed, and their mean with its interval.

    Args:
        panel: what to draw on.
        rows: those with a ``seed`` are dots, that without one has ``ci_low`` and ``ci_high``.
        variants: from top to bottom.
        place: the height.
        column: of the numbers.
    """
    step = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        at = place + (number - (len(variants) - 1) / 2) * step
        mine, look = rows[rows["variant"] == variant], variant_look(variant)
        dots = mine[mine["seed"].notna()][column].to_numpy(dtype=float)
        panel.plot(
            dots,
            np.full(len(dots), at + 0.22 * step),
            linestyle="",
            marker="o",
            markersize=3,
            alpha=0.75,
            color=look["color"],
            markeredgewidth=0,
            zorder=3,
        )
        for mean in mine[mine["seed"].isna()].to_dict("records"):
            low, high, below = mean["ci_low"], mean["ci_high"], at - 0.12 * step
            panel.hlines(below, low, high, color=look["color"], linewidth=1.4, zorder=4)
            panel.plot(
                [mean[column]],
                [below],
                linestyle="",
                marker=look["marker"],
                markersize=5,
                color=look["color"],
                markeredgecolor=PAPER,
                markeredgewidth=0.6,
                zorder=5,
            )


def probe_name(cell: str) -> str:
    """A cell of the numbers as an axis says it."""
    cell = cell.replace("segmentation patches", "segmentation")
    return cell.replace("patch_mean", "mean patch").replace("cls", "CLS")


def seeds_text(seeds: pd.Series) -> str:
    """ "3 seeds"."""
    count = int(seeds.nunique())
    return f"{count} seed{'s' if count != 1 else ''}"
