"""What an analysis shows of itself in Jupyter."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tokenlens.findings import judge

if TYPE_CHECKING:
    from tokenlens.analysis import Analysis


def summary_html(analysis: Analysis) -> str:
    """Model, images and findings as a piece of HTML, with everything that is not ours escaped."""
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
