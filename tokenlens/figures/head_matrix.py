"""Attention mass between token groups, and entropy of CLS's attention, for each head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import block_ticks, colour_bar, heat_map, integer_ticks, remove_unused
from tokenlens.figures._rows import NUMBERS, as_list, missing, rows_of
from tokenlens.figures.base import NothingToDraw, group_title
from tokenlens.figures.page import canvas, paper, styled

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

QUANTITIES = ("cls-patch", "cls-cls", "cls-reg", "cls-dist", "patch-cls", "patch-reg", "patch-dist", "entropy")


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
    """Draw a heat map of block × head per quantity, each with a separate colour scale."""
    quantities = list(dict.fromkeys(frame["quantity"].astype(str)))
    most = 2 if paper().narrow else 3 if len(quantities) == 5 else 4
    columns = min(most, len(quantities))
    rows = -(-len(quantities) // columns)
    blocks = frame["block"].nunique()
    if ax is None:
        page = canvas(None, rows, columns, 14 + rows * (17 + 1.9 * min(max(blocks, 8), 24)))
    else:
        page, rows, columns = canvas(ax, 1, len(quantities), 0), 1, len(quantities)
    remove_unused(page.axes, len(quantities))
    for index, (panel, quantity) in enumerate(zip(page.axes.flat, quantities, strict=False)):
        inside = frame[frame["quantity"] == quantity]
        matrix = inside.pivot(index="block", columns="head", values="value")
        values = matrix.to_numpy(dtype=float)
        high = float(values.max()) if quantity != "entropy" else 1.0
        low = min(0.0 if quantity != "entropy" else float(values.min()), high - 1e-6)
        image = heat_map(panel, values, low, high)
        page.title(panel, attention_title(quantity))
        panel.set_xticks(integer_ticks(matrix.shape[1], 7))
        block_ticks(panel, matrix.index, 13)
        panel.tick_params(length=2, left=index % columns == 0, labelleft=index % columns == 0)
        panel.set_xlabel("head" if index + columns >= len(quantities) else "")
        panel.set_ylabel("block" if index % columns == 0 else "")
        colour_bar(page.figure, image, panel, "", fraction=0.06, pad=0.02, aspect=45)
    page.header(frame, "mean over images; shares of attention, entropy divided by log P")
    return page.figure


def attention_title(quantity: str) -> str:
    """Return the display name of a quantity: the querying and the attended group, or the entropy of CLS."""
    if quantity == "entropy":
        return "CLS entropy"
    return " → ".join("dist. token" if group == "dist" else group_title(group) for group in quantity.split("-"))
