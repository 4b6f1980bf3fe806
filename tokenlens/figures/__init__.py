"""Figures: one file each, numbers first (``frame``) and drawing second (``plot``).

What all of them share is here: the colours of the token groups, the style, how one is drawn by name and how it is
saved. See docs/add-a-figure.md.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenlens.catalog import Catalog

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from tokenlens.analysis import Analysis
    from tokenlens.comparison import Comparison
    from tokenlens.training_run import TrainedRun
    from tokenlens.verification import Verification

figures = Catalog("tokenlens.figures", "figure")

COLOURS: Mapping[str, str] = {
    "cls": "#D55E00",
    "dist": "#E69F00",
    "reg": "#009E73",
    "patch": "#0072B2",
    "cls-patch": "#D55E00",
    "cls-cls": "#D55E00",
    "patch-patch": "#0072B2",
    "reg-cls": "#CC79A7",
    "reg-patch": "#009E73",
}
"""Colours of token groups and of pairs of them: Okabe and Ito's, which colour-blind readers tell apart."""

MARKERS: Mapping[str, str] = {
    "cls": "o",
    "dist": "v",
    "reg": "^",
    "patch": "s",
    "cls-patch": "o",
    "cls-cls": "o",
    "patch-patch": "s",
    "reg-cls": "v",
    "reg-patch": "^",
}
"""Markers go with the colours, so that no line is known by its colour alone."""

STAGE_COLOURS: Mapping[str, str] = {"centring": "#9A9A9A", "gamma": "#882255", "beta": "#EAC84B"}
"""Colours of a norm's stages: none of a token group's."""

MODEL_COLOURS = ("#1b1b1f", "#8C3FBF", "#9C9A00", "#2FB9CC", "#D8127D", "#7A4A21")
"""Colours of models in a comparison, the first one's first: black, purple, olive, cyan, magenta, brown. None is a token
group's, and colour-blind readers tell neighbours apart by lightness, everyone by markers and dashes."""

MODEL_MARKERS = ("o", "D", "^", "s", "v", "P")
MODEL_DASHES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5, 1.3, 1.2, 1.3)),
    (0, (2.4, 1.2)),
    (0, (8, 2)),
)
"""Markers and dashes go with the models' colours."""

INK, FAINT, PAPER = "#1b1b1f", "#6b6b76", "#ffffff"
GRID = "#dedee4"

SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"
"""Colour maps: cividis rises evenly in lightness and reads the same for colour-blind readers; RdBu is white at 0."""

WIDTHS_MM: Mapping[str, float] = {"single": 85.0, "double": 170.0}
"""Widths of a figure: one column of a paper, and two."""

NARROW_MM = 120.0
"""A narrower figure has fewer panels side by side and smaller text."""

STYLE: Mapping[str, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 7.5,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "axes.labelsize": "medium",
    "axes.labelpad": 2.5,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.titlesize": "small",
    "figure.titleweight": "normal",
    "figure.facecolor": PAPER,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.hspace": 0.04,
    "figure.constrained_layout.wspace": 0.02,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "image.interpolation": "none",
    "legend.fontsize": "small",
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.2,
    "lines.markeredgewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # a model's name may hold dollar signs
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    # Text stays text: it can be searched and edited, and takes the page's colour.
    "svg.fonttype": "none",
    "svg.hashsalt": "tokenlens",
    "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's usual Type 3
}
"""matplotlib settings, on top of matplotlib's own defaults; what the user has set elsewhere does not count."""

NARROW_STYLE: Mapping[str, Any] = {
    "font.size": 6.75,  # "small" text of a narrow figure is then 5.6 points
    "axes.titlepad": 3,
    "axes.labelpad": 1.5,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 2.5,
    "lines.markeredgewidth": 0.6,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
}
"""What a figure narrower than ``NARROW_MM`` has in place of ``STYLE``'s."""


FORMATS = ("svg", "png", "pdf")

ANALYSIS, COMPARISON, TRAINING, VERIFICATION = "analysis", "comparison", "training", "verification"
KINDS = {ANALYSIS: "an Analysis", COMPARISON: "a Comparison", TRAINING: "a TrainedRun", VERIFICATION: "a Verification"}
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
    marks = {COMPARISON: "analyses", TRAINING: "diagnostics", VERIFICATION: "effects", ANALYSIS: "table"}
    got = next((kind for kind, mark in marks.items() if hasattr(subject, mark)), None)
    if got is None:
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

    from tokenlens.figures._page import look_of
    from tokenlens.figures._svg import pdf_of, svg_of

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
