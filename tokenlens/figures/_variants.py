"""How the variants of a verification look, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tokenlens.figures import PAPER
from tokenlens.figures._models import model_look
from tokenlens.figures._panels import handle
from tokenlens.paired_numbers import CLASSES, DENSE

PROBED = {DENSE: "mean IoU", CLASSES: "accuracy"}
"""What probes measure, by the name in the numbers, and a panel's title for it."""

_ORDER = ("standard", "paper", "norms", "qkv_first_third", "qkv_all", "twin", "mlp", "proj", "everything")


def variants_in_order(names: Iterable[str]) -> list[str]:
    """Standard and paper first."""
    there = list(dict.fromkeys(names))
    return [name for name in _ORDER if name in there] + sorted(set(there) - set(_ORDER))


def variant_look(name: str) -> dict[str, Any]:
    """Colour, dashes and marker: the same ones in every figure."""
    return model_look(_ORDER.index(name) if name in _ORDER else len(_ORDER))


def variant_handles(names: Iterable[str]) -> list[Any]:
    """Entries of a legend with each variant's colour and marker."""
    return [handle(name, variant_look(name)["color"], variant_look(name)["marker"]) for name in names]


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
        panel.plot(dots, np.full(len(dots), at + 0.22 * step), linestyle="", marker="o", markersize=3, alpha=0.75,
                   color=look["color"], markeredgewidth=0, zorder=3)  # fmt: skip
        for mean in mine[mine["seed"].isna()].to_dict("records"):
            low, high, below = mean["ci_low"], mean["ci_high"], at - 0.12 * step
            panel.hlines(below, low, high, color=look["color"], linewidth=1.4, zorder=4)
            panel.plot([mean[column]], [below], linestyle="", marker=look["marker"], markersize=5,
                       color=look["color"], markeredgecolor=PAPER, markeredgewidth=0.6, zorder=5)  # fmt: skip


def probe_name(cell: str) -> str:
    """A cell of the numbers as an axis says it."""
    cell = cell.replace("segmentation patches", "segmentation")
    return cell.replace("patch_mean", "mean patch").replace("cls", "CLS")


def seeds_text(seeds: pd.Series) -> str:
    """ "3 seeds"."""
    count = int(seeds.nunique())
    return f"{count} seed{'s' if count != 1 else ''}"
