"""The page of a verification that is not finished: verdicts, evidence and tables."""

from __future__ import annotations

from tests.support.report_page import data_of
from tokenlens.report import summary_html


def test_it_shows_verdicts_tables_and_what_is_left_to_do(reports):
    page = reports("verification")[2]
    assert '<span class="chip supported">supported</span>' in page
    assert "+2.1 points <small>+1.2 to +3.0</small>" in page
    assert "How this was judged" in page
    assert "1 of 2 tasks are not done; run the same command again to resume (about 2 minutes)" in page
    assert data_of(page, "measured")["mean"].tolist() == [51.0, 53.0]
    assert "<span>--scale</span> <span>tiny</span>" in page
    assert "<span>--from</span> <span>tiny</span>" in page


def test_the_summary_lists_the_verdicts(reports):
    text = summary_html(reports("verification")[0])
    assert "<strong>F3 supported</strong> (paper): Specialization gains 2.1 points &lt; 3." in text
