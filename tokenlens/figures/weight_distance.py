"""How far the two sets of weights of a specialized model have moved apart, component by component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.ticker import ScalarFormatter

from tokenlens.figures._panels import depth_axis, handle, line_look
from tokenlens.figures._rows import listed, rows_of
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import canvas, characters, paper, styled, wrapped
from tokenlens.figures.style import FAINT, INK, MODEL_COLOURS, MODEL_MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tokenlens.analysis.analysis import Analysis

TITLE = "How far the two sets of weights are apart"
ORDER = 22
CAPTION = (
    "A specialized module holds one set of weights for the prefix tokens (CLS and those that go with it) and one for "
    "the patches. Left: the distance of the two, ‖w_cls − w_patch‖ over the root mean square of their lengths; 0 is "
    "equal, as after specializing, and √2 at right angles. Right: their cosine. Solid: weights and gains; dashed: "
    "biases. A row for each component; blocks in which it has one set are left out. Numbers of the weights alone: no "
    "image is behind them, and they have no spread."
)
METRICS = ("weight_distance",)

PARTS = {"relative_distance": "relative distance", "cosine": "cosine"}
COMPONENTS = {"norm": "norms", "layer_scale": "LayerScale", "qkv": "q, k, v", "proj": "output projection", "mlp": "MLP"}
"""What components are called in titles, in the order of a block; others follow by their own names."""


def frame(analysis: Analysis, components: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Distance and cosine per parameter and block; the final norm stands behind the last block.

    Args:
        analysis: where the numbers come from.
        components: only these of ``norm``, ``layer_scale``, ``qkv``, ``proj`` and ``mlp``.

    Raises:
        NothingToDraw: if weight_distance was not computed, the model is not specialized, or not in such a component.
    """
    rows = rows_of(analysis, "weight_distance")
    names = rows["site"].str.extract(r"^([^/]+)/(.+)$")
    rows["component"], rows["parameter"] = names[0], names[1]
    if components is not None:
        has = ", ".join(dict.fromkeys(rows["component"]))
        rows = rows[rows["component"].isin(listed(components))]
        if rows.empty:
            wanted = ", ".join(listed(components))
            raise NothingToDraw(f"{analysis.model} is not specialized in {wanted}. It has: {has}.")
    rows["final"] = rows["block"].isna()
    rows["block"] = rows["block"].fillna(analysis.blocks)
    columns = ["model", "metric", "component", "parameter", "block", "final", "part", "value", "elements", "unit"]
    return rows[columns].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw it: a row of panels for each component, distance on the left and cosine on the right.

    Args:
        frame: of ``frame``.
        ax: two Axes for each component; a new figure by default.
    """
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
                panel.text(
                    0.5, 0.5, "both sets are equal", transform=panel.transAxes, ha="center", va="center", color=FAINT
                )
        title = COMPONENTS.get(component, component)
        page.axes[row, 0].set_ylabel(wrapped(title, characters(24)))
        _legend(page.axes[row, 1], looks, page.own)
    distances = frame.loc[frame["part"] == "relative_distance", "value"]
    page.header(frame, "freshly specialized: both sets are equal" if (distances == 0).all() else "")
    return page.figure


def _looks(rows: pd.DataFrame) -> dict[str, tuple[str, str, bool]]:
    """Colour, marker and dashes of each parameter of a component: a colour for each module, biases dashed."""
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
    """Blocks, and "final" behind the last one where the final norm is shown."""
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
    """From 0, or up to 1; a difference below a thousandth of that is not blown up."""
    if part == "relative_distance":
        panel.set_ylim(0, 1.0 if same else max(1.08 * float(values.max()), 1e-3))
    else:
        low = 0.0 if same else min(float(values.min()), 0.999)
        panel.set_ylim(low - 0.08 * (1 - low), 1 + 0.05 * (1 - low))
        panel.axhline(1.0, color=INK, linewidth=0.6, zorder=1)
    panel.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    panel.locator_params(axis="y", nbins=4)


def _legend(panel: Axes, looks: dict[str, tuple[str, str, bool]], own: bool) -> None:
    """Beside the row's last panel, or inside it where the axes are the caller's."""
    room = characters(0.17 * paper().width, "small")
    handles = [handle(wrapped(name, room), *look) for name, look in looks.items()]
    if own:
        panel.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.8)
    else:
        panel.legend(handles=handles)
