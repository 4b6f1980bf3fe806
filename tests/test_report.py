"""The page: what is in it, that it stands alone, and that it works in a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb

from tokenlens.figures import figures
from tokenlens.findings import judge
from tokenlens.report import summary_html, write_report

from .synthetic_analysis import synthetic_analysis

CHROMIUM = Path("/usr/bin/chromium")
EVIL = "<script>alert('model')</script>"


class Page(HTMLParser):
    """The elements of a page, and the text of those that have an id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def only(analysis, *metrics):
    """The same analysis with a few metrics, so that few figures have to be drawn."""
    analysis.table = analysis.table[analysis.table["metric"].isin(metrics)]
    return analysis


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An analysis and the folder of its report."""
    folder = tmp_path_factory.mktemp("run")
    analysis = synthetic_analysis(blocks=4, heads=3, channels=64)
    write_report(analysis, folder)
    return analysis, folder


@pytest.fixture(scope="module")
def page(run):
    return (run[1] / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory):
    """Names that would be markup if they were not escaped; an untrained model, and images that were skipped."""
    analysis = synthetic_analysis(
        blocks=2, heads=2, channels=16, model=EVIL, untrained=True, source="/data/<script>alert('folder')</script>",
        skipped=({"name": "<img src=x onerror=alert(1)>.jpg", "reason": "truncated </script><b>"},),
    )  # fmt: skip
    path = write_report(only(analysis, "norm_differentiation", "token_norm"), tmp_path_factory.mktemp("evil"))
    return path, path.read_text(encoding="utf-8")


def test_every_figure_is_in_the_folder_and_in_the_page(run, page):
    names = [figure["id"] for figure in Page(page).all("figure")]
    assert sorted(names) == figures.names()
    assert names == sorted(names, key=lambda name: figures.module(name).ORDER)
    for name in names:
        assert (run[1] / "figures" / f"{name}.svg").stat().st_size > 1000
        assert (run[1] / "figures" / f"{name}.png").stat().st_size > 1000
    assert sorted(path.name for path in run[1].iterdir()) == ["figures", "report.html"]


def test_it_leads_with_the_findings(run, page):
    for finding in judge(run[0]):
        assert finding.sentence.replace(" %", "\u00a0%").replace("'", "&#39;") in page
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
    assert len(drawings) == len(figures.names())
    assert all(attributes["aria-label"] for attributes in drawings)
    levels = [int(tag[1]) for tag, _ in Page(page).elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_all_rows_are_in_the_page(run, page):
    data = json.loads(re.search(r'id="rows-data">(.*?)</script>', page, re.DOTALL)[1])
    table = run[0].table
    assert len(data["rows"]) == len(table)
    column = {name: i for i, name in enumerate(data["columns"])}
    row, expected = data["rows"][17], table.iloc[17]
    assert data["strings"][row[column["metric"]]] == expected["metric"]
    assert row[column["block"]] == expected["block"]
    assert row[column["value"]] == pytest.approx(expected["value"], rel=1e-4)


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
    assert len(Page(text).all("script")) == 2
    assert "&lt;script&gt;alert(&#39;model&#39;)&lt;/script&gt;" in text
    assert "&lt;img src=x onerror=alert(1)&gt;.jpg" in text
    assert "1 image was skipped" in text


def test_the_page_of_a_large_model_stays_small(tmp_path):
    analysis = synthetic_analysis(blocks=40, heads=24, channels=1536, groups=("cls", "reg", "patch"))
    heaviest = only(analysis, "attention_mass", "attention_entropy", "cls_attention_map", "dimension_selectivity")
    assert write_report(heaviest, tmp_path).stat().st_size < 1.5e6


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
        assert contrast(theme["gamma"], theme["paper"]) >= 3
    verdicts = "supported|not-supported|inconclusive|not-applicable"
    chips = re.findall(rf"^\.(?:{verdicts}) \{{ background: (#\w+)", styles, re.M)
    assert len(chips) == 4
    assert all(contrast("#ffffff", chip) >= 4.5 for chip in chips)


def test_the_notebook_summary_is_escaped():
    text = summary_html(synthetic_analysis(blocks=2, channels=16, model=EVIL, untrained=True))
    assert "<script>" not in text
    assert "untrained" in text
    assert "F1 not applicable" in text


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that asks nobody for anything."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    switches = [
        "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=switches)
        yield chromium
        chromium.close()


def opened(browser, path, **options):
    """A page, and lists of what it complained about and what it asked for."""
    tab = browser.new_page(**options)
    complaints: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(dialog.message))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    return tab, complaints, requests


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_disk_without_errors_or_requests(browser, run, width, scheme):
    path = run[1] / "report.html"
    tab, complaints, requests = opened(browser, path, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert complaints == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    sizes = tab.evaluate("[...document.querySelectorAll('.drawing svg')].map(x => x.getBoundingClientRect().height)")
    assert len(sizes) == len(figures.names())
    assert min(sizes) > 60
    tab.close()


@pytest.mark.browser
def test_names_run_no_script(browser, evil_page):
    tab, complaints, requests = opened(browser, evil_page[0])
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [evil_page[0].as_uri()]
    assert EVIL in tab.inner_text("h1")
    tab.close()


@pytest.mark.browser
def test_tables_sort_and_filter_with_the_keyboard(browser, run):
    tab, complaints, _ = opened(browser, run[1] / "report.html")
    heading = tab.locator("#summary thead th", has_text="mean")
    heading.locator("button").focus()
    tab.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    read = "[...document.querySelectorAll('#summary tbody tr:not([hidden])')].map(r => r.cells[4].dataset.value)"
    values = [float(x) for x in tab.evaluate(read)]
    assert values == sorted(values)
    tab.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(x) for x in tab.evaluate(read)] == sorted(values, reverse=True)
    tab.select_option("#summary-metric", "cka")
    assert len(tab.evaluate(read)) == 1

    assert tab.locator("#rows tbody tr").count() == 0
    tab.locator("#all-rows summary").press("Enter")
    table = run[0].table
    tab.wait_for_function(f"document.getElementById('rows-count').textContent === '{len(table)} rows'")
    tab.select_option("#rows-metric", "norm_differentiation")
    tab.fill("#rows-filter", "block 1")
    expected = table[(table["metric"] == "norm_differentiation") & (table["block"] == 1)]
    tab.wait_for_function(f"document.querySelectorAll('#rows tbody tr').length === {len(expected)}")
    tab.locator("#rows thead th", has_text="value").locator("button").press("Enter")
    shown = tab.evaluate("[...document.querySelectorAll('#rows tbody tr')].map(r => r.cells[6].textContent)")
    shown = [float(text.replace("−", "-")) for text in shown]
    assert shown == pytest.approx(sorted(expected["value"]), rel=1e-4)
    assert complaints == []
    tab.close()
