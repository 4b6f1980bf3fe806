"""What an analysis and a comparison show of themselves in Jupyter."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tokenlens.comparison import Comparison
from tokenlens.findings import judge
from tokenlens.report.leads import leads

if TYPE_CHECKING:
    from tokenlens.analysis import Analysis


def summary_html(subject: Analysis | Comparison) -> str:
    """A few lines of HTML: the findings of an analysis, or what differs in a comparison; all names are escaped."""
    return _comparison(subject) if isinstance(subject, Comparison) else _analysis(subject)


def _analysis(analysis: Analysis) -> str:
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


def _comparison(comparison: Comparison) -> str:
    lines = []
    for lead in leads(comparison):
        unpaired = "" if lead.paired else "<strong>unpaired</strong>: "
        lines.append(
            f"<li><strong>{escape(lead.label)}: {lead.verdict}.</strong> {escape(' '.join(lead.sentences))} "
            f"<em>{unpaired}{escape(lead.reason)}.</em></li>"
        )
    return f"<div>Against <strong>{escape(comparison.baseline)}</strong>:<ul>{''.join(lines)}</ul></div>"
