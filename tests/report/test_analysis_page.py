"""The page: what is in it, that it stands alone, and that it works in a browser."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from tests.support.report_page import Page, asked_for, data_of, opened, saved, wait_for_rows
from tests.support.synthetic_analysis import synthetic_analysis
from tokenlens.analysis.findings import judge
from tokenlens.analysis.overview import headlines
from tokenlens.figures.base import figures, figures_of
from tokenlens.report.build import summary_html, write_report
from tokenlens.report.downloads import download
from tokenlens.report.numerals import aligned, unbroken

EVIL = "<script>alert('model')</script>"
FIGURES = figures_of("analysis")


def script_of(data):
    """How a page holds a download."""
    return f'<script type="text/plain" id="{data.name}">{data.packed}</script>'


def only(analysis, *metrics):
    """The same analysis with a few metrics, so that few figures have to be drawn."""
    analysis.table = analysis.table[analysis.table["metric"].isin(metrics)]
    return analysis


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An analysis and the folder of its report."""
    folder = tmp_path_factory.mktemp("run")
    analysis = synthetic_analysis(blocks=4, heads=3, channels=64, specialized=True)
    write_report(analysis, folder)
    return analysis, folder


@pytest.fixture(scope="module")
def page(run):
    return (run[1] / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory):
    """Names that would be markup if they were not escaped; an untrained model, and images that were skipped."""
    analysis = synthetic_analysis(
        blocks=2,
        heads=2,
        channels=16,
        model=EVIL,
        untrained=True,
        source="/data/<script>alert('folder')</script>",
        skipped=({"name": "<img src=x onerror=alert(1)>.jpg", "reason": "truncated </script><b>"},),
    )
    path = write_report(only(analysis, "norm_differentiation", "token_norm"), tmp_path_factory.mktemp("evil"))
    return path, path.read_text(encoding="utf-8")


def test_every_figure_is_in_the_folder_and_in_the_page(run, page):
    names = [figure["id"] for figure in Page(page).all("figure")]
    assert names == FIGURES
    for name in names:
        assert (run[1] / "figures" / f"{name}.svg").stat().st_size > 1000
        assert (run[1] / "figures" / f"{name}.png").stat().st_size > 1000
    assert sorted(path.name for path in run[1].iterdir()) == ["figures", "report.html"]


def test_it_leads_with_the_findings(run, page):
    for finding in judge(run[0]):
        assert unbroken(finding.sentence).replace("'", "&#39;") in page
        assert finding.verdict in page
    assert page.index("F1.") < page.index("F2.") < page.index("<figure")


def test_it_stands_alone(page):
    elements = Page(page).elements
    policy = next(a["content"] for tag, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]
    for _, attributes in elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_ids_are_unique_and_links_lead_somewhere(page):
    elements = Page(page).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in elements:
        for name in ("href", "xlink:href"):
            target = attributes.get(name) or ""
            assert not target.startswith("#") or target[1:] in ids
        for name in ("aria-labelledby", "aria-describedby"):
            assert name not in attributes or attributes[name] in ids
    for target in re.findall(r"url\(#([^)]*)\)", page):
        assert target in ids


def test_every_drawing_has_words(page):
    drawings = [attributes for tag, attributes in Page(page).elements if attributes.get("role") == "img"]
    assert len(drawings) == len(FIGURES)
    assert all(attributes["aria-label"] for attributes in drawings)
    levels = [int(tag[1]) for tag, _ in Page(page).elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_every_table_and_every_figure_has_its_data_in_the_page(run, page):
    analysis = run[0]
    expected = {name: figures.get(name).frame(analysis) for name in FIGURES}
    expected |= {"table": analysis.table, "headlines": headlines(analysis)}
    buttons = [button["data-saves"] for button in Page(page).all("button") if "data-saves" in button]
    assert sorted(buttons) == sorted(f"data-{name}" for name in [*expected, "summary", "two-sets-table"])
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


def test_every_download_has_a_file_name_of_its_own(page, evil_page):
    for text in (page, evil_page[1]):
        files = [button["data-file"] for button in Page(text).all("button") if "data-file" in button]
        assert len(set(files)) == len(files)
        assert all(re.fullmatch(r"[\w.+-]+\.csv", file) for file in files)


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
    assert "1 image only" in text


def test_what_does_not_apply_is_listed_with_the_reason(tmp_path):
    analysis = synthetic_analysis(groups=("reg", "patch"), blocks=2, heads=2)
    path = write_report(only(analysis, "norm_differentiation"), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "<code>cka</code>: the model has no [CLS] token" in text
    assert "Figure <code>cka</code>" in text
    assert 'id="depth_profile"' in text
    assert not (tmp_path / "figures" / "cka.svg").exists()


def test_untrained_is_said_everywhere(evil_page):
    _, text = evil_page
    assert 'class="banner"' in text
    headings = re.findall(r"<h3[^>]*>(.*?)</h3>", text)
    titles = [figures.module(figure["id"]).TITLE for figure in Page(text).all("figure")]
    assert len(titles) == 3
    assert all(f"{title} (untrained)" in headings for title in titles)
    assert "supported</span>" not in text


def test_markup_in_names_is_escaped(evil_page):
    _, text = evil_page
    assert "<script>alert" not in text
    assert "<img" not in text
    assert len(Page(text).scripts()) == 1
    assert "&lt;script&gt;alert(&#39;model&#39;)&lt;/script&gt;" in text
    assert "&lt;img src=x onerror=alert(1)&gt;.jpg" in text
    assert "1 image was skipped" in text


def test_the_page_of_a_large_model_stays_small(tmp_path):
    analysis = synthetic_analysis(blocks=40, heads=24, channels=1536, groups=("cls", "reg", "patch"))
    heaviest = only(analysis, "attention_mass", "attention_entropy", "cls_attention_map", "dimension_selectivity")
    assert write_report(heaviest, tmp_path).stat().st_size < 2e6


def test_the_same_numbers_make_the_same_page_again(tmp_path):
    analysis = only(synthetic_analysis(blocks=2), "norm_differentiation")
    first, second = (write_report(analysis, tmp_path).read_bytes() for _ in range(2))
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.html"]


def test_text_has_contrast():
    styles = Path(write_report.__code__.co_filename).with_name("page.css").read_text(encoding="utf-8")

    def luminance(colour):
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]

    def contrast(one, two):
        high, low = sorted([luminance(one), luminance(two)], reverse=True)
        return (high + 0.05) / (low + 0.05)

    blocks = re.findall(r":root \{(.*?)\}", styles, re.DOTALL)
    themes = [dict(re.findall(r"--(\w+): (#\w+);", block)) for block in blocks]
    assert len(themes) == 2
    for theme in themes:
        for text in ("ink", "faint", "link"):
            for behind in ("paper", "ground"):
                assert contrast(theme[text], theme[behind]) >= 4.5, (text, behind)
        for line in ("gamma", "second", "sixth"):
            assert contrast(theme[line], theme["paper"]) >= 3, line
    verdicts = "supported|not-supported|inconclusive|not-applicable|differs|nothing-beyond-the-noise|not-testable"
    chips = re.findall(rf"^\.(?:{verdicts}) \{{ background: (#\w+)", styles, re.M)
    assert len(chips) == 7
    assert all(contrast("#ffffff", chip) >= 4.5 for chip in chips)


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
def test_numbers_of_a_difference_have_the_digits_that_its_interval_gives_meaning_to(values, interval, written):
    assert aligned(values, interval) == written


def test_the_notebook_summary_is_escaped():
    text = summary_html(synthetic_analysis(blocks=2, channels=16, model=EVIL, untrained=True))
    assert "<script>" not in text
    assert "untrained" in text
    assert "F1 not applicable" in text


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_disk_without_errors_or_requests(browser, run, width, scheme):
    path = run[1] / "report.html"
    tab, complaints, requests = opened(browser, path, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert asked_for(requests) == [path.as_uri()]
    assert complaints == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    sizes = tab.evaluate("[...document.querySelectorAll('.drawing svg')].map(x => x.getBoundingClientRect().height)")
    assert len(sizes) == len(FIGURES)
    assert min(sizes) > 60
    tab.close()


@pytest.mark.browser
def test_names_run_no_script(browser, evil_page):
    tab, complaints, requests = opened(browser, evil_page[0])
    assert complaints == []
    assert asked_for(requests) == [evil_page[0].as_uri()]
    assert EVIL in tab.inner_text("h1")
    tab.close()


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
    rule = tab.locator(".finding details p").first
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
