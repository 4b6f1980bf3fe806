"""The report: one self-contained HTML page of a run, with its figures beside it."""

from __future__ import annotations

from tokenlens.report.build import write_report
from tokenlens.report.summary import summary_html

__all__ = ["summary_html", "write_report"]
