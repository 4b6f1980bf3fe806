"""The page of a probe: its score with interval, its protocol and its numbers."""

from __future__ import annotations

from tests.report.conftest import EVIL, probe
from tests.support.report_page import data_of
from tokenlens.report import summary_html, write_report


def test_it_shows_score_protocol_and_numbers(reports):
    page = reports("probe")[2]
    assert "65.1\u00a0% mean IoU [61.0, 69.0] (95\u00a0% over n\u00a0=\u00a040 test images)" in page
    assert "learning rates</th><td>0.01, 0.1</td>" in page
    assert data_of(page, "scores")["value"].fillna(0).tolist() == [0.7, 0.0]
    assert data_of(page, "per_image")["image"].tolist() == ["a.png", "b.png"]
    assert 'class="banner"' in page
    assert 'id="figures"' not in page


def test_a_probe_without_other_scores_has_no_table_of_them(tmp_path):
    result = probe()
    result.table = result.table[:0]
    assert "Other scores" not in write_report(result, tmp_path).read_text(encoding="utf-8")


def test_the_summary_has_score_and_protocol(reports):
    text = summary_html(reports("probe")[0])
    assert "<strong>65.1 %</strong> mean IoU [61.0, 69.0]" in text
    assert "features</th><td>patches" in text
    assert EVIL not in text
