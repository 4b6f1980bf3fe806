"""``write_report``: draws every figure that the numbers allow and writes the page."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from tokenlens.comparison import Comparison
from tokenlens.report import analysis_page, comparison_page
from tokenlens.report.drawings import draw_all
from tokenlens.report.numerals import unbroken
from tokenlens.report.origin import definitions

if TYPE_CHECKING:
    from tokenlens.analysis import Analysis

PAGE = "report.html"


def write_report(subject: Analysis | Comparison, folder: str | os.PathLike[str]) -> Path:
    """Write ``figures/*.svg``, ``figures/*.png`` and ``report.html`` into a folder.

    The page is one file: it opens from disk, makes no network request (its Content-Security-Policy forbids them), and
    holds the numbers behind every figure and every table, to be downloaded as CSV. Figures that there are no numbers
    for are listed with the reason.

    Args:
        subject: the analysis or comparison to report.
        folder: an existing or new folder; files of the same names in it are replaced.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    compared = isinstance(subject, Comparison)
    kind = "comparison" if compared else "analysis"
    content = comparison_page.content(subject) if isinstance(subject, Comparison) else analysis_page.content(subject)
    drawn, left_out = draw_all(subject, kind, folder / "figures", content["title"])
    defined = definitions([*content["metrics"], *(metric for figure in drawn for metric in figure.metrics)])
    script, styles = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    environment = Environment(
        loader=PackageLoader("tokenlens.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["unbroken"] = unbroken
    page = environment.get_template(f"{kind}.html").render(
        **content,
        figures=drawn,
        left_out=left_out,
        definitions=defined,
        defined={definition["name"] for definition in defined},
        script=Markup(script),
        styles=Markup(styles),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    path = folder / PAGE
    half_written = path.with_name(f".{PAGE}.{os.getpid()}")
    try:
        half_written.write_text(page, encoding="utf-8")
        half_written.replace(path)
    finally:
        half_written.unlink(missing_ok=True)
    return path
