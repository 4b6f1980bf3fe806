"""The content of a probe's page."""

from __future__ import annotations

from html import escape
from typing import Any

from tokenlens.probes import ProbeResult
from tokenlens.report.downloads import download
from tokenlens.report.tables import Table, interval_column, number_column, table_of, text_column


def content(result: ProbeResult) -> dict[str, Any]:
    """Return the variables of ``templates/probe.html``, except those that ``write_report`` adds."""
    title = f"{result.model}, {result.task}"
    return {
        "title": title,
        "untrained": result.untrained,
        "mark": " (untrained)" if result.untrained else "",
        "score": f"{result.in_percent(result.value)} {result.unit} {result.interval_text}",
        "notes": list(
            dict.fromkeys(note for data in result.provenance.get("data", []) for note in data.get("notes", []))
        ),
        "protocol": result.protocol_rows(),
        "scores": _scores(result, title),
        "per_image": download(result.per_image, "per_image", title),
    }


def _scores(result: ProbeResult, title: str) -> Table | None:
    """Return a table of the secondary scores; None if there are none."""
    columns = {
        "quantity": text_column("quantity"),
        "of": text_column("of"),
        "value": number_column("value"),
        "95 % interval": interval_column(),
        "n": number_column("n", 9),
        "unit": text_column("unit"),
    }
    numeric = ("value", "95 % interval", "n")
    return None if result.table.empty else table_of(result.table, "scores", title, columns, numeric)


def summary(result: ProbeResult) -> str:
    """Return a short summary as HTML: the score with its interval, and the protocol behind a fold."""
    untrained = " <strong>untrained (random weights)</strong>" if result.untrained else ""
    rows = "".join(
        f"<tr style='text-align:left'><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in result.protocol_rows()
    )
    return (
        f"<div><strong>{escape(result.model)}</strong>{untrained}, {escape(result.task)}: "
        f"<strong>{result.in_percent(result.value)}</strong> {escape(result.unit)} {escape(result.interval_text)}"
        f"<details><summary>Protocol</summary><table>{rows}</table></details></div>"
    )
