"""Save figures as reproducible SVG, PNG and PDF files."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from tokenlens.figures.style import STYLE

FORMATS = ("svg", "png", "pdf")

FONTS = "DejaVu Sans, Verdana, Liberation Sans, Arial, sans-serif"
"""Font fallbacks in SVG. Verdana is as wide as DejaVu and the others are narrower, so text never overflows."""

PDF_DPI = 600
"""Resolution of heat maps in a PDF; everything else in it is vector graphics."""


def as_svg(figure: Figure, name: str, *, outlines: bool = False) -> str:
    """Return a figure as a compact SVG that can be embedded in an HTML page.

    The output is reproducible: it has neither a date nor random ids. All ids start with ``name``, so that several
    figures fit into one page. With ``outlines``, text is drawn as shapes: it needs no font but cannot be searched.
    """
    written = io.StringIO()
    settings = {**getattr(figure, "look", STYLE), "svg.hashsalt": f"tokenlens/{name}"}
    settings["svg.fonttype"] = "path" if outlines else "none"
    with style.context(["default", settings]):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    svg = written.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", svg)
    svg = re.sub(r"font-size: ([\d.]+)px", lambda match: f"font-size: {float(match[1]):.4g}px", svg)
    svg = re.sub(r'style="[^"]*"', lambda match: match[0].replace(": ", ":").replace("; ", ";"), svg)
    svg = re.sub(r"\n\s+", "\n", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' (?:d|x|y)="[^"]*"', _rounded, svg)
    # Move the style that a row of markers shares to their group.
    svg = re.sub(
        r'<g( clip-path="[^"]*")?>\n((?:<use [^>]*( style="[^"]*")/>\n)(?:<use [^>]*\3/>\n)*)</g>',
        lambda match: f"<g{match[1] or ''}{match[3]}>\n{match[2].replace(match[3], '')}</g>",
        svg,
    )
    svg = _without_bare_groups(svg)
    referred = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]*)', svg))
    ids = {old: f"{name}-{i}" for i, old in enumerate(referred)}
    svg = re.sub(r'\sid="([^"]*)"', lambda match: f' id="{ids[match[1]]}"' if match[1] in ids else "", svg)
    svg = re.sub(r'(href="#|url\(#)([^")]*)', lambda match: match[1] + ids[match[2]], svg)
    svg = re.sub(r"(data:image/png;base64,)\s*([^\"]+)", lambda match: match[1] + _with_palette(match[2]), svg)
    look = f'font-family="{escape(_fonts(settings), quote=True)}" stroke-linejoin="round" stroke-linecap="butt"'
    return svg.replace("<svg ", f"<svg {look} ", 1)


def as_pdf(figure: Figure) -> bytes:
    """Return a figure as a PDF without a date, with fonts embedded as TrueType.

    Heat maps are rendered at ``PDF_DPI``, because viewers blur an image of one pixel per value.
    """
    written = io.BytesIO()
    images = [(image, image.get_interpolation()) for image in figure.findobj(AxesImage)]
    try:
        for image, _ in images:
            image.set_interpolation("nearest")
        with style.context(["default", {**getattr(figure, "look", STYLE), "pdf.fonttype": 42}]):
            metadata = {"CreationDate": None, "Creator": None, "Producer": None}
            figure.savefig(written, format="pdf", dpi=PDF_DPI, metadata=metadata)
    finally:
        for image, interpolation in images:
            image.set_interpolation(interpolation)
    return written.getvalue()


def _fonts(settings: Mapping[str, Any]) -> str:
    """Return the font families of the text, those of a user's style first."""
    family = settings["font.family"]
    wanted = [family] if isinstance(family, str) else list(family)
    return FONTS if wanted == list(STYLE["font.family"]) else ", ".join([*wanted, FONTS])


def _rounded(attribute: re.Match[str]) -> str:
    """Round coordinates to a hundredth of a point, those of markers and long lines to a tenth."""
    text = attribute[0].replace(" \n", "")
    coarse = not text.startswith(" d") or text.count("L") > 8
    digits = re.compile(r"\.(\d)\d*" if coarse else r"\.(\d\d?)\d*")
    short = digits.sub(lambda match: f".{match[1]}".rstrip("0").rstrip("."), text)
    return re.sub(r" ?([MLCQz]) ?", r"\1", short)


def _without_bare_groups(svg: str) -> str:
    """Remove ``<g>`` elements without attributes; each tag of a group must be on a separate line."""
    kept: list[str] = []
    stack: list[bool] = []
    for line in svg.split("\n"):
        if line.startswith("<g") and line != "<g/>":
            stack.append(line == "<g>")
        bare = line == "<g/>" or (stack[-1] if line.startswith("<g") else line == "</g>" and stack.pop())
        if not bare:
            kept.append(line)
    return "\n".join(kept)


def _with_palette(png: str) -> str:
    """Convert a base64 PNG to a colour palette, one byte per pixel, if it has at most 256 colours."""
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA"))
    colours, index = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
    if len(colours) > 256 or (colours[:, 3] < 255).any():
        return png
    image = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), mode="L")
    image.putpalette(colours[:, :3].tobytes(), "RGB")
    written = io.BytesIO()
    image.save(written, format="png", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def settings_of(figure: Figure) -> dict[str, Any]:
    """Return the matplotlib settings that a figure was drawn with."""
    return dict(getattr(figure, "look", STYLE))


def save_figure(
    figure: Figure,
    folder: str | os.PathLike[str],
    name: str,
    formats: Sequence[str] = ("svg", "png"),
    dpi: float = 200,
    outlines: bool = False,
) -> list[Path]:
    """Write a figure to ``name``.svg, ``name``.png, … in a folder, which is created if necessary.

    Args:
        figure: the result of ``draw``, or any matplotlib figure.
        folder: the destination.
        name: the file name without a suffix.
        formats: some of ``FORMATS``.
        dpi: dots per inch of a PNG.
        outlines: convert the text of an SVG to outlines, which look the same without the font but cannot be searched.

    Returns:
        The paths, in the order of ``formats``. The files contain neither dates nor random ids.

    Raises:
        ValueError: if ``name`` is not a plain file name, or a format is unknown.
    """
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ValueError(f"a figure's name may contain letters, digits and - _ . + only, got {name!r}")
    formats = [formats] if isinstance(formats, str) else list(formats)
    if not formats or set(formats) - set(FORMATS):
        raise ValueError(f"a figure can be saved as {', '.join(FORMATS)}, got {', '.join(formats) or 'no format'}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    layout = figure.get_layout_engine()
    paths = [folder / f"{name}.{form}" for form in formats]
    with style.context(["default", settings_of(figure)]):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # keep this layout; computing it again for each file takes as long as drawing
        try:
            for form, path in zip(formats, paths, strict=True):
                if form == "svg":
                    path.write_text(as_svg(figure, name, outlines=outlines), encoding="utf-8")
                elif form == "pdf":
                    path.write_bytes(as_pdf(figure))
                else:
                    figure.savefig(path, dpi=dpi, metadata={"Software": None})
        finally:
            figure.set_layout_engine(layout)
    return paths
