"""Figures: one file each, numbers first (``frame``) and drawing second (``plot``).

What all of them share is here: the colours of the token groups, the style, how one is drawn by name and how it is
saved. See docs/add-a-figure.md.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenlens.catalog import Catalog

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from tokenlens.analysis.analysis import Analysis
    from tokenlens.comparison.comparison import Comparison
    from tokenlens.training.run import TrainedRun
    from tokenlens.verification.verify import Verification

figures = Catalog("tokenlens.figures", "figure")


FORMATS = ("svg", "png", "pdf")

ANALYSIS, COMPARISON, TRAINING, VERIFICATION = "analysis", "comparison", "training", "verification"
PROBE = "probe"
KINDS = {
    ANALYSIS: "an Analysis",
    COMPARISON: "a Comparison",
    TRAINING: "a TrainedRun",
    VERIFICATION: "a Verification",
    PROBE: "a ProbeResult",
}
"""What figures are drawn of, and the object that stands for it."""


class NothingToDraw(ValueError):
    """There are no numbers for a figure: the metric was not computed, or does not apply to the model."""


def kind_of(name: str) -> str:
    """What the figure of this name is drawn of: one of ``KINDS``."""
    return str(getattr(figures.get(name), "OF", ANALYSIS))


def figures_of(kind: str) -> list[str]:
    """The names of the figures of an ``"analysis"``, a ``"comparison"``, a ``"training"`` or a ``"verification"``.

    They are in the order of a report.

    Raises:
        ValueError: for another kind.
    """
    if kind not in KINDS:
        raise ValueError(
            f"figures are of an {ANALYSIS}, a {COMPARISON}, a {TRAINING} or a {VERIFICATION}, got {kind!r}"
        )
    found = [name for name in figures.names() if kind_of(name) == kind]
    return sorted(found, key=lambda name: (figures.get(name).ORDER, name))


def draw(
    subject: Analysis | Comparison | TrainedRun | Verification,
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
        subject: where the numbers come from: an Analysis, for the figures of a comparison a Comparison, for those of a
            training a TrainedRun, of a verification a Verification.
        name: a name of ``figures``.
        width: ``"single"`` (85 mm), ``"double"`` (170 mm) or a number of millimetres.
        height: in millimetres; by default what the figure needs.
        style: matplotlib settings on top of the shared ones: a style's name, a file, a dict, or a list of them.
        blocks: only these blocks: a number, a list, a range, a slice, or text such as ``"0-5,11"``; negative numbers
            count from the end. The final norm belongs to the last block.
        **options: of the figure's ``frame`` and ``plot``, whichever takes them (``ax`` goes to ``plot``).

    Raises:
        LookupError: for an unknown figure or style.
        NothingToDraw: for numbers that are not there.
        ValueError: for an option that the figure does not have, for blocks or sizes that cannot be, and for a figure of
            another kind of subject.
    """
    from tokenlens.figures._blocks import only_blocks

    figure = figures.get(name)
    _check_kind(subject, name)
    takes = {part: list(inspect.signature(getattr(figure, part)).parameters)[1:] for part in ("frame", "plot")}
    unknown = sorted(set(options) - set(takes["frame"]) - set(takes["plot"]))
    if unknown:
        known = ", ".join(dict.fromkeys([*takes["frame"], *takes["plot"], "blocks", "width", "height", "style"]))
        raise ValueError(f"the figure {name} has no option {', '.join(unknown)}. Options: {known}.")
    chosen = {part: {key: options[key] for key in names if key in options} for part, names in takes.items()}
    frame: DataFrame = figure.frame(subject, **chosen["frame"])
    if blocks is not None:
        frame = only_blocks(frame, blocks, subject, name)
    sizes = {"width": width, "height": height, "style": style}
    given = {key: value for key, value in sizes.items() if value is not None and (key, value) != ("width", "double")}
    drawn: Figure = figure.plot(frame, **chosen["plot"], **given)
    return drawn


def _check_kind(subject: Any, name: str) -> None:
    got = getattr(subject, "kind", None)
    if got not in KINDS:
        *others, last = KINDS.values()
        raise ValueError(f"figures are drawn of {', '.join(others)} or {last}, got {type(subject).__name__}")
    wanted = kind_of(name)
    if got != wanted:
        article = {kind: f"{what.split()[0]} {kind}" for kind, what in KINDS.items()}
        raise ValueError(
            f"the figure {name} is of {article[wanted]}, and this is {article[got]}. Figures of {article[got]}: "
            f"{', '.join(figures_of(got)) or 'none'}."
        )


def save_figure(
    figure: Figure,
    folder: str | os.PathLike[str],
    name: str,
    formats: Sequence[str] = ("svg", "png"),
    dpi: float = 200,
    outlines: bool = False,
) -> list[Path]:
    """Write a figure as ``name``.svg, ``name``.png, … into a folder, which is made if it is not there.

    Args:
        figure: what ``draw`` returns, or any matplotlib figure.
        folder: where to.
        name: of the files, without an ending.
        formats: of ``FORMATS``. A PDF embeds its fonts as TrueType.
        dpi: dots per inch of a PNG.
        outlines: make text in an SVG into outlines, which look the same without the font but are text no more.

    Returns:
        The files, in the order of ``formats``. The same figure gives the same files: they hold no date.

    Raises:
        ValueError: for a name that is not a plain file name, and for an unknown format.
    """
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ValueError(f"a figure's name has letters, digits and - _ . + only, got {name!r}")
    formats = [formats] if isinstance(formats, str) else list(formats)
    if not formats or set(formats) - set(FORMATS):
        raise ValueError(f"a figure is saved as {', '.join(FORMATS)}, got {', '.join(formats) or 'no format'}")
    from matplotlib import style

    from tokenlens.figures._svg import pdf_of, svg_of
    from tokenlens.figures.page import look_of

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    layout = figure.get_layout_engine()
    paths = [folder / f"{name}.{form}" for form in formats]
    with style.context(["default", look_of(figure)]):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is found; to find it again for each file takes as long as drawing
        try:
            for form, path in zip(formats, paths, strict=True):
                if form == "svg":
                    path.write_text(svg_of(figure, name, outlines=outlines), encoding="utf-8")
                elif form == "pdf":
                    path.write_bytes(pdf_of(figure))
                else:
                    figure.savefig(path, dpi=dpi, metadata={"Software": None})
        finally:
            figure.set_layout_engine(layout)
    return paths
