"""Write the report page of a result."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from tokenlens.report import (
    analysis_page,
    comparison_page,
    intervention_page,
    probe_page,
    training_page,
    verification_page,
)
from tokenlens.report.number_format import breakable, unbroken
from tokenlens.report.page_figures import draw_all
from tokenlens.report.provenance import commands, definitions, provenance_rows
from tokenlens.storage.files import write_text
from tokenlens.storage.result import Result

PAGE = "report.html"

PAGES: dict[str, Any] = {
    "analysis": analysis_page,
    "comparison": comparison_page,
    "intervention": intervention_page,
    "probe": probe_page,
    "training": training_page,
    "verification": verification_page,
}
"""The module with the functions ``content`` and ``summary`` for each kind of result."""


def write_report(result: Result, folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html``, ``figures/*.svg`` and ``figures/*.png`` into a folder.

    The page is a single file that works without a network connection; its Content-Security-Policy forbids requests. It
    contains the numbers of each figure and table for download as CSV. Figures without numbers are listed with the
    reason.

    Args:
        result: the result to report.
        folder: an existing or new folder; files with the same names are replaced.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = _shared_content(result) | PAGES[result.kind].content(result)
    drawn, left_out = draw_all(result, folder / "figures", content["title"])
    defined = definitions([*content["metrics"], *(metric for figure in drawn for metric in figure.metrics)])
    script, styles = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    environment = Environment(
        loader=PackageLoader("tokenlens.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"unbroken": unbroken, "breakable": breakable}
    page = environment.get_template(f"{result.kind}.html").render(
        **content,
        figures=drawn,
        drawn={figure.name for figure in drawn},
        left_out=left_out,
        definitions=defined,
        defined={definition["name"] for definition in defined},
        script=Markup(script),
        styles=Markup(styles),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def _shared_content(result: Result) -> dict[str, Any]:
    """Return the variables of ``templates/page.html``, which the page of a kind may replace."""
    empty = dict.fromkeys(("facts", "notes", "skipped", "not_applicable", "metrics"), ())
    provenance = result.provenance
    reproduce = {"commands": commands(provenance.get("command", "")), "provenance": provenance_rows(provenance)}
    return {"mark": "", **empty, **reproduce}


def summary_html(result: Result) -> str:
    """Return a short summary of a result as HTML, for Jupyter."""
    return str(PAGES[result.kind].summary(result))
