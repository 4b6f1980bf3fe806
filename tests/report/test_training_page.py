"""The page of a training: its state, losses and recipe, and a legible page if nothing has been logged yet."""

from __future__ import annotations

from tests.support.report_page import Page, data_of
from tests.support.synthetic_training import trained
from tokenlens.report import summary_html, write_report


def test_it_shows_state_losses_and_figure(reports):
    run, _, page = reports("training")
    assert "Not finished.</strong> This training is stopped at step 100 of 2000" in page
    assert data_of(page, "losses")["loss"].tolist() == [2.0, 0.0392157, 0.019802]
    assert len(data_of(page, "diagnostics")) == len(run.diagnostics)
    assert [figure["id"] for figure in Page(page).all("figure")] == ["emergence"]
    assert "<span>train</span> <span>tiny_dino</span>" in page
    assert 'id="metric-norm_differentiation"' in page


def test_a_training_without_diagnostics_lists_the_missing_figure(tmp_path):
    run = trained(blocks=1, steps=(0,))
    run.rows[0] = run.rows[0].iloc[:0]
    page = write_report(run, tmp_path).read_text(encoding="utf-8")
    assert "No step has been logged yet" in page
    assert "Figure <code>emergence</code>: there are no diagnostics" in page
    assert 'id="figures"' not in page
    assert 'id="definitions"' not in page


def test_the_summary_names_recipe_and_state(reports):
    text = summary_html(reports("training")[0])
    assert "State: stopped" in text
    assert "Objective: dino" in text


def test_it_says_what_was_lost_of_the_data(tmp_path):
    run = trained(blocks=1, steps=(0,))
    run.settings["data"]["notes"] = ["a.tar: the shard is broken: cut off at byte 700"]
    assert "the shard is broken: cut off at byte 700" in write_report(run, tmp_path).read_text(encoding="utf-8")
