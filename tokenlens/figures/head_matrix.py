"""Attention mass between token groups, and entropy of CLS's attention, for each head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import block_ticks, colour_bar, heat_map, integer_ticks, remove_unused
from tokenlens.figures._rows import NUMBERS, as_list, missing, rows_of
from tokenlens.figures.base import NothingToDraw, group_title
from tokenlens.figures.page import Canvas, canvas, paper, styled

KIND = "analysis"
TITLE = "Attention of each head to token groups"
ORDER = 60
GROUP = "Attention"
CAPTION = (
    "Each square is one head of one block. Attention mass is the share of attention that tokens of the first group "
    "pay to all tokens of the second, so that the shares of CLS add up to 1. Entropy is that of CLS's attention over "
    "the P patches, divided by log P: 1 is uniform, 0 a single patch. The order of the heads has no meaning."
)
METRICS = ("attention_mass", "attention_entropy")

QUANTITIES = (
    *("cls-patch", "cls-cls", "cls-reg", "cls-dist", "cls-bias"),
    *("patch-cls", "patch-reg", "patch-dist", "patch-bias", "entropy"),
)


def frame(analysis: Analysis, quantities: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Return attention mass and entropy per block and head.

    Args:
        quantities: pairs of groups, query first, and ``entropy``; by default all that the model has.

    Raises:
        NothingToDraw: if neither attention_mass nor attention_entropy was computed, or a quantity is missing.
    """
    computed = set(analysis.table["metric"])
    if not computed & {"attention_mass", "attention_entropy"}:
        raise missing(analysis, "attention_mass")
    frames = []
    if "attention_mass" in computed:
        mass = rows_of(analysis, "attention_mass")
        mass["quantity"] = mass["group"]
        frames.append(mass)
    if "attention_entropy" in computed:
        entropy = rows_of(analysis, "attention_entropy", parts=["normalized"])
        entropy["quantity"] = "entropy"
        frames.append(entropy)
    found = pd.concat(frames)
    have = [quantity for quantity in QUANTITIES if quantity in set(found["quantity"])]
    wanted = have if quantities is None else as_list(quantities)
    if absent := [quantity for quantity in wanted if quantity not in have]:
        raise NothingToDraw(f"{analysis.model} has no {', '.join(absent)} per head. It has: {', '.join(have)}.")
    found = found[found["quantity"].isin(wanted)]
    found["quantity"] = pd.Categorical(found["quantity"], wanted)
    columns = ["model", "metric", "quantity", "block", "head", *NUMBERS]
    return found.sort_values(["quantity", "block", "head"])[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a heat map of block × head per quantity; all shares of attention have one colour scale."""
    quantities = list(dict.fromkeys(frame["quantity"].astype(str)))
    most = 2 if paper().narrow else 3 if len(quantities) == 5 else 4
    columns = min(most, len(quantities))
    rows = -(-len(quantities) // columns)
    blocks = frame["block"].nunique()
    if ax is None:
        page = canvas(None, rows, columns, (24 if rows == 1 else 36) + rows * (17 + 1.9 * min(max(blocks, 8), 24)))
    else:
        page, rows, columns = canvas(ax, 1, len(quantities), 0), 1, len(quantities)
    remove_unused(page.axes, len(quantities))
    images: dict[str, AxesImage] = {}
    axes_of: dict[str, list[Any]] = {}
    for index, (panel, quantity) in enumerate(zip(page.axes.flat, quantities, strict=False)):
        inside = frame[frame["quantity"] == quantity]
        matrix = inside.pivot(index="block", columns="head", values="value")
        image = heat_map(panel, matrix.to_numpy(dtype=float), *attention_limits(frame, quantity))
        page.title(panel, attention_title(quantity))
        panel.set_xticks(integer_ticks(matrix.shape[1], 7))
        block_ticks(panel, matrix.index, 13)
        panel.tick_params(length=2, left=index % columns == 0, labelleft=index % columns == 0)
        panel.set_xlabel("head" if index + columns >= len(quantities) else "")
        panel.set_ylabel("block" if index % columns == 0 else "")
        images[quantity], axes_of[quantity] = image, [panel]
    attention_bars(page, images, axes_of, apart=rows > 1)
    page.header(frame, "mean over images; shares of attention, entropy divided by log P")
    return page.figure


def attention_limits(frame: pd.DataFrame, quantity: str) -> tuple[float, float]:
    """Return the limits of a quantity's colour scale: one for all shares of attention, one for all entropies."""
    entropy = frame["quantity"] == "entropy"
    if quantity == "entropy":
        return min(math.floor(10 * frame.loc[entropy, "value"].min()) / 10, 0.9), 1.0
    return 0.0, max(math.ceil(10 * frame.loc[~entropy, "value"].max()) / 10, 0.1)


def attention_bars(
    page: Canvas,
    images: dict[str, AxesImage],
    axes_of: dict[str, list[Any]],
    *,
    beside: bool = False,
    apart: bool = False,
) -> None:
    """Add one colour bar for all shares of attention, and one for entropy.

    Args:
        page: the figure.
        images: an image of each quantity.
        axes_of: the panels of each quantity.
        beside: whether the bars are to the right of their panels instead of below.
        apart: whether the panels of one kind are not all side by side; the bars are then below all panels.
    """
    everywhere = [panel for panels in axes_of.values() for panel in panels]
    units = {True: "entropy / log P", False: "share of attention"}  # the last one is the lowest
    for entropy, unit in units.items():
        kind = [quantity for quantity in images if (quantity == "entropy") == entropy]
        if kind:
            panels = [panel for quantity in kind for panel in axes_of[quantity]]
            look: dict[str, Any] = {"aspect": 14 * len(kind), "fraction": 0.04}
            if not beside:
                look |= {"location": "bottom", "shrink": 0.9}
            if apart:
                look |= {"aspect": 30, "shrink": 0.5}
            colour_bar(page.figure, images[kind[0]], everywhere if apart else panels, unit, **look)


def attention_title(quantity: str) -> str:
    """Return the display name of a quantity: the querying and the attended group, or the entropy of CLS."""
    if quantity == "entropy":
        return "CLS entropy"
    return " → ".join("dist. token" if group == "dist" else group_title(group) for group in quantity.split("-"))
