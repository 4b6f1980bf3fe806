"""Where each head of each block looks, model beside model, on one colour scale for each quantity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tokenlens.figures import head_matrix
from tokenlens.figures._models import Cell, comparison_note, grid, names_of, numbers_of, shared
from tokenlens.figures._panels import colour_bar, heat_map, whole_ticks
from tokenlens.figures._rows import listed
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import characters, paper, styled, wrapped
from tokenlens.figures.style import FAINT

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from tokenlens.comparison.comparison import Comparison

OF = "comparison"
TITLE = "What each head attends to, model by model"
ORDER = 250
CAPTION = (
    "Each cell is one head of one block. Heads of different models have no common order, so those of a block are "
    "sorted by value. Attention mass is the share of attention that tokens of the first group pay to all tokens of "
    "the second; entropy is of CLS's attention over patches, divided by log P: 1 is uniform, 0 a single patch. All "
    "models share one colour scale for each quantity."
)
METRICS = ("attention_mass", "attention_entropy")


def frame(comparison: Comparison, quantities: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Attention mass and entropy per model, block and head; ``rank`` is a head's place in its block, lowest first.

    Args:
        comparison: where the numbers come from.
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
        raise NothingToDraw(f"attention per head of fewer than two models: {'; '.join(reasons)}")
    found = pd.concat(frames, ignore_index=True)
    if quantities is not None:
        wanted = listed(quantities)
        if absent := [name for name in wanted if name not in set(found["quantity"])]:
            have = ", ".join(dict.fromkeys(found["quantity"]))
            raise NothingToDraw(f"the models have no {', '.join(absent)} per head. They have: {have}.")
        found = found[found["quantity"].isin(wanted)]
    found = shared(found, ["quantity"])
    order = [quantity for quantity in head_matrix.QUANTITIES if quantity in set(found["quantity"])]
    found["quantity"] = pd.Categorical(found["quantity"], order)
    by = found.groupby(["model_number", "quantity", "block"], observed=True, sort=False)["value"]
    found["rank"] = by.rank(method="first").astype(int) - 1
    found["left_out"] = "; ".join(reasons)
    return found.sort_values(["quantity", "model_number", "block", "rank"]).reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: heat maps of block × head, a row for each quantity and a column for each model, or the other way round.

    Args:
        frame: of ``frame``.
        ax: as many Axes as there are panels, quantity by quantity; a new figure by default.
    """
    quantities = list(dict.fromkeys(frame["quantity"].astype(str)))
    numbers = sorted(frame["model_number"].unique())
    beside = ax is not None or (len(numbers) <= 3 if paper().narrow else 3 <= len(numbers) <= 5)
    rows, columns = (quantities, numbers) if beside else (numbers, quantities)
    deepest = int(frame["block"].max()) + 1
    height = 8 + 1.3 * min(max(deepest, 10), 26)
    room = 0.76 * paper().width / len(numbers) if beside else height
    names = names_of(frame, room, lettered=not beside and paper().narrow)
    most = len(columns) if beside or not paper().narrow else 4
    page, cells = grid(ax, rows, columns, most, (18, height))
    images: dict[str, AxesImage] = {}
    panels: dict[str, list[Any]] = {quantity: [] for quantity in quantities}
    for cell in cells:
        quantity, number = (cell.row, cell.column) if beside else (cell.column, cell.row)
        inside = frame[(frame["quantity"] == quantity) & (frame["model_number"] == number)]
        panels[quantity].append(cell.panel)
        if inside.empty:
            _nothing(cell)
            continue
        everyone = frame.loc[frame["quantity"] == quantity, "value"]
        matrix = inside.pivot(index="block", columns="rank", values="value")
        images[quantity] = heat_map(cell.panel, matrix.to_numpy(dtype=float), *_scale(quantity, everyone))
        ticks = whole_ticks(len(matrix), 7)
        cell.panel.set_yticks(ticks, [str(matrix.index[tick]) for tick in ticks])
        cell.panel.set_xticks([])
        cell.panel.tick_params(length=2)
        if cell.bottom:
            cell.panel.set_xlabel(f"{matrix.shape[1]} heads, sorted")
    for cell in cells:
        quantity, number = (cell.row, cell.column) if beside else (cell.column, cell.row)
        title = head_matrix.quantity_title(quantity)
        if cell.top:
            page.title(cell.panel, names.short(number) if beside else title, 0.8 / page.axes.shape[1])
        if cell.left:
            text = wrapped(title if beside else names.short(number), characters(height))
            cell.panel.set_ylabel(f"{text}\nblock")
    for quantity, image in images.items():
        where: dict[str, Any] = (
            {"aspect": 18, "fraction": 0.04} if beside else {"location": "bottom", "aspect": 12, "fraction": 0.03}
        )
        colour_bar(page.figure, image, panels[quantity], "", **where)
    page.legend(names.handles(lines=False), columns=2)
    comparison_note(page, frame, "mean over images; shares of attention, entropy divided by log P")
    return page.figure


def _scale(quantity: str, values: pd.Series) -> tuple[float, float]:
    """The limits of a quantity's colours over all models."""
    if quantity == "entropy":
        return min(float(values.min()), 1 - 1e-6), 1.0
    return 0.0, max(float(np.nanmax(values)), 1e-6)


def _nothing(cell: Cell) -> None:
    """Say in a panel that the model has no such tokens."""
    cell.panel.text(
        0.5,
        0.5,
        "not in\nthis model",
        transform=cell.panel.transAxes,
        ha="center",
        va="center",
        color=FAINT,
        fontsize="small",
    )
    cell.panel.set_xticks([])
    cell.panel.set_yticks([])
    for side in cell.panel.spines.values():
        side.set_visible(False)
