"""Attention of each head to token groups, model by model, on a common colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tokenlens.comparison.comparison import Comparison
from tokenlens.figures import head_matrix
from tokenlens.figures._comparison_panels import GridPanel, grid
from tokenlens.figures._comparison_rows import comparison_note, numbers_of, shared_rows
from tokenlens.figures._model_labels import model_labels
from tokenlens.figures._panels import block_ticks, heat_map, write_inside
from tokenlens.figures._rows import as_list
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import characters, paper, styled, wrapped

KIND = "comparison"
TITLE = "Attention of each head to token groups, by model"
ORDER = 250
CAPTION = (
    "Each square is one head of one block. The heads of different models do not correspond to each other, so they "
    "are sorted by value within a block. Attention mass is the share of attention that tokens of the first group pay "
    "to all tokens of the second. Entropy is that of CLS's attention over the P patches, divided by log P: 1 is "
    "uniform, 0 a single patch. All shares have one colour scale, and all entropies another."
)
METRICS = ("attention_mass", "attention_entropy")


def frame(comparison: Comparison, quantities: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Return attention mass and entropy per model, block and head.

    The column ``rank`` orders the heads of a block by value, lowest first.

    Args:
        quantities: pairs of groups, query first, and ``entropy``; by default all that at least two models have.

    Raises:
        NothingToDraw: if no two models have such numbers.
    """
    frames, reasons = [], []
    for label, number in numbers_of(comparison).items():
        try:
            rows = head_matrix.frame(comparison.analyses[label])
        except NothingToDraw as reason:
            reasons.append(f"{label}: {reason}")
            continue
        rows.insert(0, "label", label)
        rows.insert(1, "model_number", number)
        frames.append(rows.astype({"quantity": str}))
    if len(frames) < 2:
        raise NothingToDraw(f"fewer than two models have attention per head: {'; '.join(reasons)}")
    found = pd.concat(frames, ignore_index=True)
    if quantities is not None:
        wanted = as_list(quantities)
        if absent := [name for name in wanted if name not in set(found["quantity"])]:
            have = ", ".join(dict.fromkeys(found["quantity"]))
            raise NothingToDraw(f"the models have no {', '.join(absent)} per head. They have: {have}.")
        found = found[found["quantity"].isin(wanted)]
    found = shared_rows(found, ["quantity"])
    order = [quantity for quantity in head_matrix.QUANTITIES if quantity in set(found["quantity"])]
    found["quantity"] = pd.Categorical(found["quantity"], order)
    by = found.groupby(["model_number", "quantity", "block"], observed=True, sort=False)["value"]
    found["rank"] = by.rank(method="first").astype(int) - 1
    found["left_out"] = "; ".join(reasons)
    return found.sort_values(["quantity", "model_number", "block", "rank"]).reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw heat maps of block × head, a row per quantity and a column per model or the other way round."""
    quantities = list(dict.fromkeys(frame["quantity"].astype(str)))
    numbers = sorted(frame["model_number"].unique())
    beside = ax is not None or (len(numbers) <= 3 if paper().narrow else 3 <= len(numbers) <= 5)
    rows, columns = (quantities, numbers) if beside else (numbers, quantities)
    deepest = int(frame["block"].max()) + 1
    height = 8 + 1.3 * min(max(deepest, 10), 26)
    room = 0.76 * paper().width / len(numbers) if beside else height
    names = model_labels(frame, room, lettered=not beside and paper().narrow)
    most = len(columns) if beside or not paper().narrow else 4
    page, panels = grid(ax, rows, columns, most, (18, height))
    images: dict[str, AxesImage] = {}
    axes_of: dict[str, list[Any]] = {quantity: [] for quantity in quantities}
    for panel in panels:
        quantity, number = (panel.row, panel.column) if beside else (panel.column, panel.row)
        inside = frame[(frame["quantity"] == quantity) & (frame["model_number"] == number)]
        axes_of[quantity].append(panel.axes)
        if inside.empty:
            _mark_absent(panel)
            continue
        matrix = inside.pivot(index="block", columns="rank", values="value")
        images[quantity] = heat_map(
            panel.axes, matrix.to_numpy(dtype=float), *head_matrix.attention_limits(frame, quantity)
        )
        block_ticks(panel.axes, matrix.index, 7)
        panel.axes.set_xticks([])
        panel.axes.tick_params(length=2)
        if panel.bottom:
            panel.axes.set_xlabel(f"{matrix.shape[1]} heads, sorted")
    for panel in panels:
        quantity, number = (panel.row, panel.column) if beside else (panel.column, panel.row)
        title = head_matrix.attention_title(quantity)
        if panel.top:
            page.title(panel.axes, names.short(number) if beside else title, 0.8 / page.axes.shape[1])
        if panel.left:
            text = wrapped(title if beside else names.short(number), characters(height))
            panel.axes.set_ylabel(f"{text}\nblock")
    head_matrix.attention_bars(page, images, axes_of, beside=beside, apart=len(columns) > most)
    page.legend(names.handles(lines=False), columns=2)
    comparison_note(page, frame, "mean over images; shares of attention, entropy divided by log P")
    return page.figure


def _mark_absent(panel: GridPanel) -> None:
    """Write into a panel that the model does not have the quantity."""
    write_inside(panel.axes, "not in\nthis model", fontsize="small")
    panel.axes.set_xticks([])
    panel.axes.set_yticks([])
    for side in panel.axes.spines.values():
        side.set_visible(False)
