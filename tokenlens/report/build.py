"""``write_report``: draws every figure that the numbers allow and writes the page."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from tokenlens.report import analysis_page, comparison_page, probe_page, training_page, verification_page
from tokenlens.report.drawings import draw_all
from tokenlens.report.numerals import unbroken
from tokenlens.report.origin import definitions
from tokenlens.storage.files import write_text
from tokenlens.storage.result import Result

PAGE = "report.html"

PAGES: dict[str, Any] = {
    "analysis": analysis_page,
    "comparison": comparison_page,
    "probe": probe_page,
    "training": training_page,
    "verification": verification_page,
}
"""For each kind of result the module with its page's ``content`` and ``summary``."""


def write_report(result: Result, folder: str | os.PathLike[str]) -> Path:
    """Write ``figures/*.svg``, ``figures/*.png`` and ``report.html`` into a folder.

    The page is one file: it opens from disk, makes no network request (its Content-Security-Policy forbids them), and
    holds the numbers behind every figure and every table, to be downloaded as CSV. Figures that there are no numbers
    for are listed with the reason.

    Args:
        result: the result to report.
        folder: an existing or new folder; files of the same names in it are replaced.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = PAGES[result.kind].content(result)
    drawn, left_out = draw_all(result, result.kind, folder / "figures", content["title"])
    defined = definitions([*content["metrics"], *(metric for figure in drawn for metric in figure.metrics)])
    script, styles = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    environment = Environment(
        loader=PackageLoader("tokenlens.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["unbroken"] = unbroken
    page = environment.get_template(f"{result.kind}.html").render(
        **content,
        figures=drawn,
        left_out=left_out,
        definitions=defined,
        defined={definition["name"] for definition in defined},
        script=Markup(script),
        styles=Markup(styles),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def summary_html(result: Result) -> str:
    """Return a few lines of HTML that say what was found, for Jupyter; all names are escaped."""
    return str(PAGES[result.kind].summary(result))
