"""The report: one self-contained HTML page of a result, with its figures beside it."""

from tokenlens.report.build import summary_html, write_report

__all__ = ["summary_html", "write_report"]
