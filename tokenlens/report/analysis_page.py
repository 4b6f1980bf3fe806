"""What stands in the page of one model."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.analysis.findings import judge
from tokenlens.analysis.overview import headlines
from tokenlens.figures._rows import GROUPS, title_of
from tokenlens.report.downloads import download
from tokenlens.report.numerals import fixed
from tokenlens.report.origin import commands, provenance_rows
from tokenlens.report.tables import Cell, Table, summary_table, table_of, text_of
from tokenlens.report.two_sets import two_sets, two_sets_table

if TYPE_CHECKING:
    from tokenlens.analysis.analysis import Analysis


def content(analysis: Analysis) -> dict[str, Any]:
    """All that ``templates/analysis.html`` writes, but the figures."""
    images = analysis.provenance.get("images", {})
    return {
        "title": title_of(analysis),
        "model": analysis.model,
        "untrained": analysis.untrained,
        "mark": " (untrained)" if analysis.untrained else "",
        "facts": _facts(analysis),
        "notes": [images["note"]] if images.get("note") else [],
        "groups": [(group, GROUPS[group]) for group in GROUPS if group in (*analysis.layout.prefix, "patch")],
        "findings": judge(analysis),
        "headlines": _headlines(analysis),
        "two_sets": two_sets(analysis),
        "two_sets_table": two_sets_table(analysis),
        "summary": summary_table(analysis.table, analysis.model),
        "table": download(analysis.table, "table", analysis.model),
        "metrics": analysis.metrics,
        "not_applicable": list(analysis.not_applicable.items()),
        "skipped": [(image["name"], image["reason"]) for image in images.get("skipped", [])],
        "provenance": provenance_rows(analysis.provenance),
        "commands": commands(analysis.provenance, "analysis"),
    }


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    provenance = analysis.provenance
    size = provenance.get("image_size") or []
    facts = {
        "Images": provenance.get("images", {}).get("count"),
        "Image size": " × ".join(map(str, size)) if size else None,
        "Blocks": analysis.blocks,
        "Heads": analysis.heads or None,
        "Patches": "{} × {}".format(*analysis.layout.grid),
        "Prefix tokens": ", ".join(analysis.layout.prefix) or "none",
        "Family": provenance.get("family"),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _headlines(analysis: Analysis) -> Table | None:
    """The numbers of the whole model, written out; None if there are none."""
    frame = headlines(analysis)

    def bounds(row: Any) -> Cell:
        if pd.isna(row.ci_low) or pd.isna(row.ci_high):
            return Cell("–")
        return Cell(f"{fixed(row.ci_low)} to {fixed(row.ci_high)}")

    def place(row: Any) -> Cell:
        where = [f"{kind} {getattr(row, kind)}" for kind in ("block", "head") if not pd.isna(getattr(row, kind))]
        return Cell(", ".join(where))

    columns = {
        "quantity": text_of("quantity"),
        "value": lambda row: Cell(fixed(row.value)),
        "95 % interval": bounds,
        "unit": text_of("unit"),
        "where": place,
        "n": lambda row: Cell(str(row.n)),
    }
    numeric = ("value", "95 % interval", "n")
    return None if frame.empty else table_of(frame, "headlines", analysis.model, columns, numeric)


def summary(analysis: Analysis) -> str:
    """Return a few lines of HTML: the model, the images and the findings."""
    untrained = " <strong>untrained (random weights)</strong>" if analysis.untrained else ""
    source = analysis.provenance.get("images", {})
    names = ", ".join(dict.fromkeys(analysis.table["metric"]))
    findings = "".join(
        f"<li><strong>{finding.name} {finding.verdict}</strong>: {escape(finding.sentence)}</li>"
        for finding in judge(analysis)
    )
    return (
        f"<div><strong>{escape(str(analysis.model))}</strong>{untrained}<br>"
        f"{source.get('count', 0)} images from {escape(str(source.get('source', '')))}, {analysis.blocks} blocks, "
        f"{len(analysis.table)} numbers: {escape(names)}<ul>{findings}</ul></div>"
    )
