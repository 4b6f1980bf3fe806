"""A matplotlib figure as a small SVG that is the same each time and can be put into a page, and as a PDF."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import style
from matplotlib.image import AxesImage
from PIL import Image

from tokenlens.figures.style import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONTS = "DejaVu Sans, Verdana, Liberation Sans, Arial, sans-serif"
"""Fonts of the text. Verdana has DejaVu's widths and the others are narrower: text never outgrows its place."""

PDF_DPI = 600
"""Of the matrices in a PDF; everything else in it is vectors."""


def svg_of(figure: Figure, name: str, *, outlines: bool = False) -> str:
    """A figure as SVG, with neither a date nor random ids: the same numbers give the same text.

    What matplotlib repeats on every piece of text is said once, on the root element. Nothing is left in it that would
    reach beyond the figure when it is put into a page, but ids; those start with ``name``. With ``outlines`` its text
    is drawn as shapes: it needs no font, and cannot be searched.
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
    # One style for a row of markers, on their group.
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


def pdf_of(figure: Figure) -> bytes:
    """A figure as PDF, with its fonts embedded as TrueType and without a date.

    Matrices are drawn pixel by pixel: viewers blur the small image of one pixel a cell that other formats hold.
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
    """The fonts of the text: those of a user's style first."""
    family = settings["font.family"]
    wanted = [family] if isinstance(family, str) else list(family)
    return FONTS if wanted == list(STYLE["font.family"]) else ", ".join([*wanted, FONTS])


def _rounded(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point, of markers and of long lines to a tenth."""
    text = attribute[0].replace(" \n", "")
    coarse = not text.startswith(" d") or text.count("L") > 8
    return re.sub(r"(\.\d)(\d?)\d*", r"\1" if coarse else r"\1\2", text)


def _without_bare_groups(svg: str) -> str:
    """Leave out ``<g>`` elements that say nothing; every tag of a group is on a line of its own."""
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
    """A PNG in base64 with a byte for each pixel instead of four, where it has no more than 256 colours."""
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA"))
    colours, index = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
    if len(colours) > 256 or (colours[:, 3] < 255).any():
        return png
    image = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), mode="L")
    image.putpalette(colours[:, :3].tobytes(), "RGB")
    written = io.BytesIO()
    image.save(written, format="png", optimize=True)
    return base64.b64encode(written.getvalue()).decode()
