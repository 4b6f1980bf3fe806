"""The page of an analysis: its content, and its tables and downloads in a browser."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from tests.report.conftest import EVIL, only
from tests.support.report_page import Page, asked_for, data_of, opened, saved, wait_for_rows
from tests.support.synthetic_analysis import synthetic_analysis
from tokenlens.analysis.findings import judge
from tokenlens.analysis.overview import overview
from tokenlens.figures import figures, figures_of
from tokenlens.report.build import summary_html, write_report
from tokenlens.report.downloads import download
from tokenlens.report.number_format import aligned_numbers, unbroken

FIGURES = figures_of("analysis")
SVG_TEXT = "{http://www.w3.org/2000/svg}text"


@pytest.fixture(scope="module")
def run(reports):
    """Return an analysis and the folder of its report."""
    analysis, path, _ = reports("analysis")
    return analysis, path.parent


@pytest.fixture(scope="module")
def page(reports):
    return reports("analysis")[2]


@pytest.fixture(scope="module")
def evil_page(reports):
    return reports("evil analysis")[1:]


def script_of(data):
    """Return the element that holds a download in a page."""
    return f'<script type="text/plain" id="{data.name}">{data.packed}</script>'


def test_every_figure_is_in_the_folder_and_in_the_page(run, page):
    names = [figure["id"] for figure in Page(page).all("figure")]
    groups = [getattr(figures.module(name), "GROUP", "") for name in FIGURES]
    order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    assert names == sorted(FIGURES, key=lambda name: order[getattr(figures.module(name), "GROUP", "")])
    for name in names:
        assert (run[1] / "figures" / f"{name}.svg").stat().st_size > 1000
        assert (run[1] / "figures" / f"{name}.png").stat().st_size > 1000
    assert sorted(path.name for path in run[1].iterdir()) == ["figures", "report.html"]


def test_it_starts_with_the_findings(run, page):
    for finding in judge(run[0]):
        assert unbroken(finding.sentence).replace("'", "&#39;") in page
        assert finding.verdict in page
    order = ["<h1>", "F1(a).", "F1(b).", "F1(c).", "F2(a).", "F2(b).", "<figure"]
    assert [page.index(text) for text in order] == sorted(page.index(text) for text in order)


def test_every_table_and_every_figure_has_its_data_in_the_page(run, page):
    analysis = run[0]
    expected = {name: figures.get(name).frame(analysis) for name in FIGURES}
    expected |= {"table": analysis.table, "overview": overview(analysis)}
    buttons = [button["data-saves"] for button in Page(page).all("button") if "data-saves" in button]
    more = ["summary", "specialized-weights-table", "cosine_maps"]
    assert sorted(buttons) == sorted(f"data-{name}" for name in [*expected, *more])
    for name, frame in expected.items():
        data = data_of(page, name)
        assert list(data.columns) == list(frame.columns)
        assert len(data) == len(frame)
        for column in frame.columns:
            if pd.api.types.is_numeric_dtype(frame[column]):
                ours, theirs = (x[column].astype(float).to_numpy() for x in (data, frame))
                np.testing.assert_allclose(ours, theirs, rtol=1e-5)
            else:
                assert list(data[column]) == list(frame[column].astype(str))


def test_numbers_keep_six_digits_and_three_where_there_is_one_for_each_channel():
    short = download(pd.DataFrame({"value": [1 / 3, -2e-9 / 3, 1e7 / 3, np.nan, np.inf]}), "short", "a/b c")
    assert short.file == "a_b_c-short.csv"
    assert data_of(script_of(short), "short")["value"].tolist() == [0.333333, -6.66667e-10, 3333330.0, None, "inf"]
    long = download(pd.DataFrame({"value": np.full(30_000, 1 / 3)}), "long", "model")
    assert long.digits == 3
    assert (data_of(script_of(long), "long")["value"] == 0.333).all()
    assert len(long.packed) < 200


def test_columns_of_one_value_keep_their_rows():
    frame = pd.DataFrame({"model": ["m", "m"], "head": pd.array([pd.NA, pd.NA], dtype="Int64"), "same": [True, True]})
    data = data_of(script_of(download(frame, "x", "m")), "x")
    assert data.to_dict("list") == {"model": ["m", "m"], "head": [None, None], "same": [True, True]}
    assert data_of(script_of(download(frame[:0], "x", "m")), "x").shape == (0, 3)
    mixed = pd.DataFrame({"flag": [True, 1], "n": [1, 1.0]}, dtype=object)
    assert data_of(script_of(download(mixed, "x", "m")), "x")["flag"].tolist() == [True, 1]


def test_numbers_without_a_value_are_left_empty(tmp_path):
    analysis = synthetic_analysis(n=1, blocks=2, heads=2, channels=16)
    path = write_report(only(analysis, "norm_differentiation", "cls_cls_cosine"), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "NaN" not in text
    assert ">nan<" not in text
    assert "1 distinct image only" in text


def test_what_does_not_apply_is_listed_with_the_reason(tmp_path):
    analysis = synthetic_analysis(groups=("reg", "patch"), blocks=2, heads=2)
    path = write_report(only(analysis, "norm_differentiation"), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "<code>cka</code>: the model has no [CLS] token" in text
    assert "Figure <code>cka</code>" in text
    assert 'id="depth_profile"' in text
    assert not (tmp_path / "figures" / "cka.svg").exists()


def test_untrained_models_are_marked_everywhere(evil_page):
    _, text = evil_page
    assert 'class="banner"' in text
    headings = re.findall(r"<h4[^>]*>(.*?)</h4>", text)
    titles = [figures.module(figure["id"]).TITLE for figure in Page(text).all("figure")]
    assert len(titles) == 4
    assert all(f"{title} (untrained)" in headings for title in titles)
    assert "supported</span>" not in text


def test_skipped_images_are_listed(evil_page):
    assert "&lt;img src=x onerror=alert(1)&gt;.jpg" in evil_page[1]
    assert "1 image was skipped" in evil_page[1]


def test_the_page_of_a_large_model_is_small(tmp_path):
    analysis = synthetic_analysis(blocks=24, heads=16, channels=1024, groups=("cls", "reg", "patch"))
    heaviest = only(analysis, "attention_mass", "cls_attention_map", "dimension_selectivity")
    assert write_report(heaviest, tmp_path).stat().st_size < 1.2e6


@pytest.mark.parametrize(
    ("values", "interval", "written"),
    [
        ([-1.137e-05, 0.309762], (-0.319695, -0.299851), ["0.000", "0.310", "−0.320", "−0.300"]),
        ([8.66e-05, 1.082686], (-1.084611, -1.080589), ["0.000", "1.083", "−1.085", "−1.081"]),
        ([253.6769, 153.789], (96.539, 103.237), ["253.7", "153.8", "96.5", "103.2"]),
        ([0.5, 0.25], (np.nan, np.nan), ["0.5000", "0.2500", "", ""]),
        ([3e-7, 1e-7], (1e-7, 3e-7), ["3e−7", "1e−7", "1e−7", "3e−7"]),
        ([0.0, 0.0], (0.0, 0.0), ["0", "0", "0", "0"]),
    ],
)
def test_differences_have_the_digits_that_their_intervals_justify(values, interval, written):
    assert aligned_numbers(values, interval) == written


def test_the_notebook_summary_has_the_verdicts(reports):
    text = summary_html(reports("evil analysis")[0])
    assert "untrained" in text
    assert "F1(a) not applicable" in text


@pytest.mark.browser
def test_tables_sort_and_filter_with_the_keyboard(browser, run):
    tab, complaints, _ = opened(browser, run[1] / "report.html")
    heading = tab.locator("#summary thead th", has_text="mean")
    heading.locator("button").focus()
    tab.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    read = "[...document.querySelectorAll('#summary tbody tr')].map(r => r.cells[4].dataset.value)"
    values = [float(x) for x in tab.evaluate(read)]
    assert values == sorted(values)
    tab.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(x) for x in tab.evaluate(read)] == sorted(values, reverse=True)
    tab.select_option('select[data-table="summary"]', "cka")
    assert len(tab.evaluate(read)) == 1

    assert tab.locator("#data-table-table tbody tr").count() == 0
    tab.locator("#data-table-rows summary").press("Enter")
    table = run[0].table
    wait_for_rows(tab, "data-table-table", len(table))
    tab.select_option('select[data-table="data-table-table"]', "norm_differentiation")
    tab.fill('input[data-table="data-table-table"]', "block 1 cls")
    expected = table[(table["metric"] == "norm_differentiation") & (table["block"] == 1)]
    expected = expected[expected["group"] == "cls-patch"]
    wait_for_rows(tab, "data-table-table", len(expected))
    tab.locator("#data-table-table thead th", has_text="value").locator("button").press("Enter")
    read = "[...document.querySelectorAll('#data-table-table tbody tr')].map(r => r.cells[7].textContent)"
    shown = tab.evaluate(read)
    shown = [float(text.replace("−", "-")) for text in shown]
    assert shown == pytest.approx(sorted(expected["value"]), rel=1e-4)
    assert complaints == []
    tab.close()


@pytest.mark.browser
def test_the_data_of_a_figure_is_one_click_away(browser, run, evil_page, tmp_path):
    analysis, folder = run
    tab, complaints, requests = opened(browser, folder / "report.html")
    path, arrived = saved(tab, "stage_split", tmp_path)
    frame = figures.get("stage_split").frame(analysis)
    assert path.name == "vit_small_patch14_dinov2-stage_split.csv"
    assert list(arrived.columns) == list(frame.columns)
    for column in ("block", "value", "ci_low", "ci_high", "n"):
        np.testing.assert_allclose(arrived[column].astype(float), frame[column].astype(float), rtol=1e-5)
    assert arrived["stage"].tolist() == frame["stage"].tolist()
    _, arrived = saved(tab, "table", tmp_path)
    np.testing.assert_allclose(arrived["value"], analysis.table["value"], rtol=1e-5)
    assert complaints == []
    assert asked_for(requests) == [(folder / "report.html").as_uri()]
    tab.close()

    tab, complaints, _ = opened(browser, evil_page[0])
    _, arrived = saved(tab, "depth_profile", tmp_path)
    assert set(arrived["model"]) == {f"{EVIL} (untrained)"}
    assert complaints == []
    tab.close()


def drawing_size(svg):
    return re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()


@pytest.mark.browser
def test_a_figure_can_be_enlarged_saved_and_made_again(browser, run, tmp_path):
    """Every figure has the five buttons; of one, drawing, files and command are what they say."""
    folder = run[1]
    tab, complaints, _ = opened(browser, folder / "report.html", viewport={"width": 1280, "height": 900})
    buttons = "[...document.querySelectorAll('figure')].map((one) => [one.id, ...[...one.querySelectorAll('button')]"
    shown = tab.evaluate(f"{buttons}.map((button) => button.offsetParent && button.textContent)])")
    assert sorted(line[0] for line in shown) == sorted(FIGURES)
    assert all(line[1:] == ["Enlarge", "SVG", "PDF", "CSV", "Copy command"] for line in shown), shown

    drawing = tab.locator("#cka .drawing svg")
    small = drawing.bounding_box()["width"]
    tab.click('button[data-enlarges="cka"]')
    assert tab.locator("dialog .drawing svg").bounding_box()["width"] > small
    tab.keyboard.press("Escape")
    drawing.wait_for()
    assert not tab.locator("dialog").is_visible()

    with tab.expect_download() as arriving:
        tab.click('button[data-draws="cka"]')
    assert arriving.value.suggested_filename == "vit_small_patch14_dinov2-cka.svg"
    arriving.value.save_as(tmp_path / "cka.svg")
    saved_svg, drawn = ((path / "cka.svg").read_text(encoding="utf-8") for path in (tmp_path, folder / "figures"))
    assert "var(--" not in saved_svg
    texts = [[text.text for text in ElementTree.fromstring(svg).iter(SVG_TEXT)] for svg in (saved_svg, drawn)]
    assert texts[0] == texts[1]
    assert "block" in texts[0]

    tab.evaluate("window.print = () => {}")
    tab.click('button[data-prints="cka"]')
    width, height = map(float, drawing_size(drawn))
    printed = tab.pdf(prefer_css_page_size=True)
    assert printed.count(b"/Type /Page\n") == 1
    box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", printed)
    assert [float(side) for side in box.groups()] == pytest.approx([width, height], abs=2)
    tab.evaluate("window.dispatchEvent(new Event('afterprint'))")
    drawing.wait_for()
    assert not tab.locator("dialog").is_visible()

    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.click('button[data-copies="cka"]')
    tab.locator('button[data-copies="cka"]', has_text="Copied").wait_for()
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied == f"tokenlens figure {folder} cka --out cka.pdf"
    assert complaints == []
    tab.close()


@pytest.mark.browser
def test_cells_with_commas_quotes_and_lines_survive_the_download(browser, tmp_path):
    name = 'a "quoted", long\nname'
    path = write_report(only(synthetic_analysis(blocks=2, model=name), "token_norm"), tmp_path)
    tab, complaints, _ = opened(browser, path)
    _, arrived = saved(tab, "table", tmp_path)
    assert set(arrived["model"]) == {name}
    assert complaints == []
    tab.close()


@pytest.mark.browser
def test_on_paper_nothing_needs_a_click(browser, run):
    tab, complaints, _ = opened(browser, run[1] / "report.html")
    rule = tab.locator("details.finding p").first
    assert not rule.is_visible()
    tab.emulate_media(media="print")
    tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert rule.is_visible()
    controls = tab.locator("nav, .controls, .download button, #data-table-rows")
    assert not any(controls.nth(i).is_visible() for i in range(controls.count()))
    assert tab.locator(".on-paper").first.is_visible()
    full = "[...document.querySelectorAll('.scroll')].every(x => x.scrollHeight <= x.clientHeight + 1)"
    assert tab.evaluate(full)
    tab.emulate_media(media="screen")
    tab.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert not rule.is_visible()
    assert complaints == []
    tab.close()
