"""Self-contained HTML report pages for all kinds of results."""

from tokenlens.report.build import summary_html, write_report

__all__ = ["summary_html", "write_report"]
