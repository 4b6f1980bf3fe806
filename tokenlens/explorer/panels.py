"""The maps of a view as panels: titles, and scales whose labels are exact."""

# Shapes: h, w the patch grid; H heads.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenlens.explorer.exploration import Selection, View
from tokenlens.figures.style import plain_number
from tokenlens.overlays.map_grid import quantile_limits, round_up
from tokenlens.overlays.selection import token_title
from tokenlens.tokens import NORM_SITES

LEAST_ATTENTION = 1.5
"""The scale of attention ends here or above, so that uniform attention does not look like structure."""


@dataclass(frozen=True)
class Panel:
    """One map with its scale.

    Args:
        key: ``before``, ``cosine``, ``attention``, ``cls_attention``, ``heads``, ``components``, ``norm`` or ``match``.
        title: what it shows.
        values: (h, w); (H, h, w) for ``heads``; colours (h, w, 3) for ``components``.
        colours: the colour map; empty if the values are colours.
        unit: unit of the values.
        limits: lowest and highest value of the scale.
        labels: their texts, with ≤ or ≥ where values lie beyond.
        alike: panels with the same text share a scale within a model.
        free: a patch that sets no scale, because it is the token itself.
    """

    key: str
    title: str
    values: NDArray[Any]
    colours: Literal["diverging", "sequential", ""] = "sequential"
    unit: str = ""
    limits: tuple[float, float] = (0.0, 1.0)
    labels: tuple[str, str] = ("", "")
    alike: str = ""
    free: tuple[int, int] | None = None


def panels_of(view: View, selection: Selection, other: str = "") -> list[Panel]:
    """Return the panels of a view without their scales; ``other`` is the name of the image of the correspondence."""
    token, free = token_title(view.token), None if isinstance(view.token, str) else view.token
    site = selection.site
    at = f"after {site}" if site in NORM_SITES else f"at {site}"
    found: list[Panel | None] = [
        _panel("before", f"cosine to {token}, before {site}", view.before_hw, "diverging", alike="cosine", free=free),
        _panel("cosine", f"cosine to {token}, {at}", view.cosine_hw, "diverging", alike="cosine", free=free),
        _panel("attention", f"attention of {token}", view.attention_hw, unit="× uniform"),
        None
        if view.token == "cls"
        else _panel("cls_attention", "attention of [CLS]", view.cls_attention_hw, unit="× uniform"),
        _panel("components", "principal components", view.colours_hw3, ""),
        _panel("norm", "norm", view.norms_hw, unit="× median"),
    ]
    if view.match is not None:
        row, column = view.match.nearest
        title = f"nearest patch in {other}: ({row}, {column})"
        found.append(_panel("match", title, view.match.cosine_hw, "diverging", unit="cosine"))
    found.append(_panel("heads", f"attention of {token} by head", view.heads_Hhw, unit="× uniform"))
    return [panel for panel in found if panel is not None]


def _panel(
    key: str,
    title: str,
    values: NDArray[Any] | None,
    colours: Literal["diverging", "sequential", ""] = "sequential",
    unit: str = "",
    alike: str = "",
    free: tuple[int, int] | None = None,
) -> Panel | None:
    return None if values is None else Panel(key, title, values, colours, unit, alike=alike or key, free=free)


def set_scales(models: Sequence[Sequence[Panel]], shared: bool) -> list[list[Panel]]:
    """Return the panels of each model with limits and labels, shared by all models or for each alone."""
    everything = [panel for panels in models for panel in panels]
    return [
        [
            _scaled(panel, [each for each in (everything if shared else panels) if each.alike == panel.alike])
            for panel in panels
        ]
        for panels in models
    ]


def _scaled(panel: Panel, group: Sequence[Panel]) -> Panel:
    if not panel.colours:
        return panel
    # The token itself has cosine 1, which would hide the rest.
    values = np.concatenate([_others(each) for each in group])
    if panel.colours == "diverging":
        high = min(round_up(float(np.abs(values).max(initial=0.0))), 1.0)
        low = -high
    elif panel.key == "norm":
        low, high = quantile_limits(values)
    else:
        low, high = 0.0, round_up(max(float(np.quantile(values, 0.995)), LEAST_ATTENTION))
    slack = 1e-4 * (high - low)
    least, largest = float(panel.values.min()), float(panel.values.max())
    # The ends are numbers of two digits, so that their labels are exact.
    labels = (
        ("≤ " if least < low - slack else "") + plain_number(low),
        ("≥ " if largest > high + slack else "") + plain_number(high),
    )
    return replace(panel, limits=(low, high), labels=labels)


def _others(panel: Panel) -> NDArray[Any]:
    if panel.free is None:
        return panel.values.ravel()
    kept = np.ones(panel.values.shape, dtype=bool)
    kept[panel.free] = False
    return panel.values[kept]
