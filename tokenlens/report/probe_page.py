"""The page of a probe: its number, the protocol that decided it, and the numbers by class."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from tokenlens.report.downloads import download
from tokenlens.report.origin import commands, provenance_rows
from tokenlens.report.tables import Table, number_of, table_of, text_of

if TYPE_CHECKING:
    from tokenlens.probes import ProbeResult


def content(result: ProbeResult) -> dict[str, Any]:
    """Return all that ``templates/probe.html`` writes."""
    title = f"{result.model}, {result.task}"
    return {
        "title": title,
        "untrained": result.untrained,
        "mark": " (untrained)" if result.untrained else "",
        "headline": result.headline,
        "facts": result.protocol_rows(),
        "notes": [],
        "skipped": [],
        "not_applicable": [],
        "numbers": _numbers(result, title),
        "per_image": download(result.per_image, "per_image", title),
        "metrics": [],
        "commands": commands(result.provenance, "probe"),
        "provenance": provenance_rows(result.provenance),
    }


def _numbers(result: ProbeResult, title: str) -> Table | None:
    if result.table.empty:
        return None
    columns = {
        "quantity": text_of("quantity"),
        "of": text_of("of"),
        "value": number_of("value"),
        "ci_low": number_of("ci_low"),
        "ci_high": number_of("ci_high"),
        "n": text_of("n"),
        "unit": text_of("unit"),
    }
    return table_of(result.table, "numbers", title, columns, ("value", "ci_low", "ci_high", "n"))


def summary(result: ProbeResult) -> str:
    """Return a few lines of HTML: the number with its interval, and the protocol behind a fold."""
    untrained = " <strong>untrained (random weights)</strong>" if result.untrained else ""
    rows = "".join(
        f"<tr style='text-align:left'><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in result.protocol_rows()
    )
    return (
        f"<div><strong>{escape(result.model)}</strong>{untrained}, {escape(result.task)}: "
        f"<strong>{result.in_percent(result.value)}</strong> {escape(result.unit)} {escape(result.interval_text)}"
        f"<details><summary>protocol</summary><table>{rows}</table></details></div>"
    )
