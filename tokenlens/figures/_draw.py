"""Draw a figure by name."""

from __future__ import annotations

import inspect
from typing import Any

from matplotlib.figure import Figure
from pandas import DataFrame

from tokenlens.figures._blocks import select_blocks
from tokenlens.figures.base import KINDS, figures, figures_of
from tokenlens.storage.result import Result


def draw(
    result: Result,
    name: str,
    *,
    width: str | float = "double",
    height: float | None = None,
    style: Any = None,
    blocks: Any = None,
    **options: Any,
) -> Figure:
    """Draw one figure by name.

    Args:
        result: an analysis, comparison, training or verification, whichever the figure is for.
        name: a name in the catalogue ``figures``.
        width: ``"single"`` (85 mm), ``"double"`` (170 mm) or a number of millimetres.
        height: in millimetres; by default as high as the figure needs.
        style: matplotlib settings that override the shared ones: a style's name, a file, a dict, or a list of them.
        blocks: draw only these blocks: a number, a list, a range, a slice, or text such as ``"0-5,11"``. Negative
            numbers count from the end. The final norm belongs to the last block.
        **options: passed to the figure's ``frame`` or ``plot``, depending on which accepts them (``ax`` goes to
            ``plot``).

    Raises:
        LookupError: if there is no such figure or style.
        NothingToDraw: if the result has no numbers for the figure.
        ValueError: for an unknown option, an invalid size or choice of blocks, or a figure for another kind of result.
    """
    figure = figures.get(name)
    _check_kind(result, name, figure.KIND)
    accepted = {part: list(inspect.signature(getattr(figure, part)).parameters)[1:] for part in ("frame", "plot")}
    if unknown := sorted(set(options) - {*accepted["frame"], *accepted["plot"]}):
        known = ", ".join(dict.fromkeys([*accepted["frame"], *accepted["plot"], "blocks", "width", "height", "style"]))
        raise ValueError(f"the figure {name} has no option {', '.join(unknown)}. Options: {known}.")
    chosen = {part: {key: options[key] for key in names if key in options} for part, names in accepted.items()}
    frame: DataFrame = figure.frame(result, **chosen["frame"])
    if blocks is not None:
        frame = select_blocks(frame, blocks, result, name)
    sizes = {"width": width, "height": height, "style": style}
    given = {key: value for key, value in sizes.items() if value is not None and (key, value) != ("width", "double")}
    drawn: Figure = figure.plot(frame, **chosen["plot"], **given)
    return drawn


def _check_kind(result: Result, name: str, wanted: str) -> None:
    """Raise ValueError unless the result is of the kind that a figure is for."""
    if not isinstance(result, Result):
        raise ValueError(f"expected a result ({', '.join(KINDS)}), got {type(result).__name__}")
    if result.kind != wanted:
        raise ValueError(
            f"the figure {name} needs a result of kind {wanted!r}, got {result.kind!r}. Figures for that kind: "
            f"{', '.join(figures_of(result.kind)) or 'none'}."
        )
