"""Laws for the pages of all kinds of results: they request nothing, run no script of others, and can be read."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb

from tests.report.conftest import EVIL, IMAGE, RESULTS
from tests.support.report_page import Page, asked_for, opened
from tokenlens.report import summary_html, write_report

LARGE = ("analysis", "comparison")
"""Results with all figures; the others have names that contain markup."""


@pytest.fixture(params=RESULTS)
def page(reports, request):
    return reports(request.param)[2]


def test_it_requests_nothing(page):
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
            assert not target.startswith("#") or target in ("#", *(f"#{name}" for name in ids))
        for name in ("aria-labelledby", "aria-describedby"):
            assert name not in attributes or attributes[name] in ids
    for target in re.findall(r"url\(#([^)]*)\)", page):
        assert target in ids


def test_its_headings_have_levels_and_its_drawings_words(page):
    levels = [int(tag[1]) for tag, _ in Page(page).elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    drawings = [attributes for tag, attributes in Page(page).elements if attributes.get("role") == "img"]
    assert len(drawings) == len(Page(page).all("figure"))
    assert all(attributes["aria-label"] for attributes in drawings)


def test_every_download_has_a_unique_file_name(page):
    files = [button["data-file"] for button in Page(page).all("button") if "data-file" in button]
    assert len(set(files)) == len(files)
    drawings = "|".join(str(figure["id"]) for figure in Page(page).all("figure")) or "no drawing"
    assert all(re.fullmatch(rf"[\w.+-]+(\.csv|-({drawings})\.svg)", file) for file in files), files


@pytest.mark.parametrize("kind", RESULTS)
def test_names_are_escaped(reports, kind):
    result, _, page = reports(kind)
    assert len(Page(page).scripts()) == 1
    for text in (page, summary_html(result)):
        for markup in ("<script>alert", "<b>"):
            assert markup not in text
        for tag in re.findall("<img[^>]*>", text):
            assert re.match('<img src="data:image/', tag), tag[:200]
    assert kind in (*LARGE, "verification") or "&lt;script&gt;alert(&#39;model&#39;)&lt;/script&gt;" in page
    assert ("&lt;img src=x onerror=alert(1)&gt;" in page) == kind.startswith("evil"), IMAGE


@pytest.mark.parametrize("kind", RESULTS)
def test_pages_are_small_and_the_same_each_time(reports, kind, tmp_path):
    result, _, page = reports(kind)
    assert len(page) < 1.2e6
    if kind not in LARGE:  # the figures of the others take long
        assert write_report(result, tmp_path).read_text(encoding="utf-8") == page


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
    verdicts = "supported|not-supported|inconclusive|not-applicable|differs|no-significant-difference|not-testable"
    chips = re.findall(rf"^\.(?:{verdicts}) \{{ background: (#\w+)", styles, re.M)
    assert len(chips) == 7
    assert all(contrast("#ffffff", chip) >= 4.5 for chip in chips)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light")])
@pytest.mark.parametrize("kind", LARGE)
def test_it_opens_from_disk_without_errors_or_requests(browser, reports, kind, width, scheme):
    _, path, page = reports(kind)
    tab, complaints, requests = opened(browser, path, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert asked_for(requests) == [path.as_uri()]
    assert complaints == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    sizes = tab.evaluate("[...document.querySelectorAll('.drawing svg')].map(x => x.getBoundingClientRect().height)")
    assert len(sizes) == len(Page(page).all("figure"))
    assert min(sizes) > 60
    tab.close()


@pytest.mark.browser
def test_names_run_no_script(browser, reports):
    _, path, _ = reports("evil analysis")
    tab, complaints, requests = opened(browser, path)
    assert complaints == []
    assert asked_for(requests) == [path.as_uri()]
    assert EVIL in tab.inner_text("h1")
    tab.close()
