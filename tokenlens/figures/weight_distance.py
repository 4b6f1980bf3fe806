"""Distance between the CLS and patch weights of specialized modules, by component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from tokenlens.analysis.analysis import Analysis
from tokenlens.figures._panels import depth_axis, legend_handle, line_look, write_inside
from tokenlens.figures._rows import as_list, rows_of
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import canvas, characters, paper, styled, wrapped
from tokenlens.figures.style import INK, MODEL_COLOURS, MODEL_MARKERS

KIND = "analysis"
TITLE = "Distance between specialized weights"
ORDER = 22
GROUP = "Norms"
CAPTION = (
    "A specialized module has separate weights for the prefix tokens (CLS and others grouped with it) and for the "
    "patches. Left: relative distance ‖w_cls − w_patch‖ divided by the root mean square of the two norms: 0 if they "
    "are equal, as directly after specialization, and √2 if they are orthogonal with equal norms. Right: their "
    "cosine. Solid: weights and gains; dashed: biases. One row per component; blocks in which it is not specialized "
    "are left out. The numbers depend on the weights alone and have no spread."
)
METRICS = ("weight_distance",)

PARTS = {"relative_distance": "relative distance", "cosine": "cosine"}
COMPONENTS = {"norm": "norms", "layer_scale": "LayerScale", "qkv": "q, k, v", "proj": "output projection", "mlp": "MLP"}
"""Titles of components, in the order of a block; others follow under their names."""


def frame(analysis: Analysis, components: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Return distance and cosine per parameter and block; the final norm is numbered after the last block.

    Args:
        components: any of ``norm``, ``layer_scale``, ``qkv``, ``proj`` and ``mlp``; by default all.

    Raises:
        NothingToDraw: if weight_distance was not computed, or no such component is specialized.
    """
    rows = rows_of(analysis, "weight_distance")
    names = rows["site"].str.extract(r"^([^/]+)/(.+)$")
    rows["component"], rows["parameter"] = names[0], names[1]
    if components is not None:
        has = ", ".join(dict.fromkeys(rows["component"]))
        rows = rows[rows["component"].isin(as_list(components))]
        if rows.empty:
            wanted = ", ".join(as_list(components))
            raise NothingToDraw(f"{analysis.model} is not specialized in {wanted}. It has: {has}.")
    rows["final"] = rows["block"].isna()
    rows["block"] = rows["block"].fillna(analysis.blocks)
    columns = ["model", "metric", "component", "parameter", "block", "final", "part", "value", "elements", "unit"]
    return rows[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a row of panels per component, with the distance on the left and the cosine on the right."""
    present = list(dict.fromkeys(frame["component"]))
    components = [name for name in COMPONENTS if name in present] + [name for name in present if name not in COMPONENTS]
    page = canvas(ax, len(components), 2, 14 + 33 * len(components))
    for row, component in enumerate(components):
        inside = frame[frame["component"] == component]
        looks = _looks(inside)
        same = bool((inside.loc[inside["part"] == "relative_distance", "value"] == 0).all())
        for column, part in enumerate(PARTS):
            panel: Axes = page.axes[row, column]
            for parameter, (colour, marker, hollow) in looks.items():
                line = inside[(inside["parameter"] == parameter) & (inside["part"] == part)].sort_values("block")
                x, y = line["block"].to_numpy(dtype=float), line["value"].to_numpy(dtype=float)
                look = line_look(colour, marker, hollow)
                panel.plot(x, y, zorder=4, clip_on=False, markevery=1 + len(x) // 27, **look)
            _block_axis(panel, frame, label=row == len(components) - 1)
            _value_axis(panel, inside.loc[inside["part"] == part, "value"], part, same)
            panel.grid(axis="y")
            if row == 0:
                page.title(panel, PARTS[part], 0.36)
            if same:
                write_inside(panel, "weights are equal")
        title = COMPONENTS.get(component, component)
        page.axes[row, 0].set_ylabel(wrapped(title, characters(24)))
        _legend(page.axes[row, 1], looks, beside=page.new)
    distances = frame.loc[frame["part"] == "relative_distance", "value"]
    page.header(frame, "not trained since specialization: weights are equal" if (distances == 0).all() else "")
    return page.figure


def _looks(rows: pd.DataFrame) -> dict[str, tuple[str, str, bool]]:
    """Return colour, marker and dashes of each parameter of a component: a colour per module, biases dashed."""
    parameters = list(dict.fromkeys(rows.sort_values("final", kind="stable")["parameter"]))
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
    found = {}
    for number, bias, name in sorted(
        (modules.index(module), "bias" in last, name)
        for name, (module, _, last) in zip(parameters, (name.rpartition(".") for name in parameters), strict=True)
    ):
        found[name] = MODEL_COLOURS[number % len(MODEL_COLOURS)], MODEL_MARKERS[number % len(MODEL_MARKERS)], bias
    return found


def _block_axis(panel: Axes, frame: pd.DataFrame, label: bool) -> None:
    """Set up the block axis, with "final" after the last block if the final norm is shown."""
    blocks, final = frame.loc[~frame["final"], "block"], frame.loc[frame["final"], "block"]
    depth_axis(panel, blocks if len(blocks) else final, label=label, room=9)
    if len(final):
        last = int(final.iloc[0])
        low = int(blocks.min()) if len(blocks) else last
        ticks = [tick for tick in panel.get_xticks() if tick < last - 1]
        panel.set_xticks([*ticks, last], [*(f"{tick:.0f}" for tick in ticks), "final"])
        panel.set_xlim(low - 0.5, last + 0.5)
    panel.tick_params(axis="x", labelbottom=label)


def _value_axis(panel: Axes, values: pd.Series, part: str, same: bool) -> None:
    """Set up the y axis from 0 or up to 1; differences below a thousandth are not magnified."""
    if part == "relative_distance":
        panel.set_ylim(0, 1.0 if same else max(1.08 * float(values.max()), 1e-3))
    else:
        low = 0.0 if same else min(float(values.min()), 0.999)
        panel.set_ylim(low - 0.08 * (1 - low), 1 + 0.05 * (1 - low))
        panel.axhline(1.0, color=INK, linewidth=0.6, zorder=1)
    panel.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    panel.locator_params(axis="y", nbins=4)


def _legend(panel: Axes, looks: dict[str, tuple[str, str, bool]], beside: bool) -> None:
    """Add a legend beside a panel, or inside it."""
    room = characters(0.17 * paper().width, "small")
    handles = [legend_handle(wrapped(name, room), *look) for name, look in looks.items()]
    if beside:
        panel.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.8)
    else:
        panel.legend(handles=handles)
