"""The page of several models: what it leads with, what it says of pairing and noise, and that it works in a browser."""

from __future__ import annotations

import json
import re
from html import unescape

import numpy as np
import pytest

from tests.support.command_line import tokenlens
from tests.support.report_page import Page, asked_for, data_of, opened, saved, wait_for_rows
from tests.support.synthetic_analysis import synthetic_analysis
from tests.support.synthetic_comparison import synthetic_comparison, with_values
from tokenlens.comparison.compare import compare
from tokenlens.figures.base import figures, figures_of
from tokenlens.report.build import summary_html, write_report

EVIL = "<script>alert('model')</script>"
FEW = {"blocks": (4, 4, 3), "heads": 3, "channels": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A comparison of three models and the folder of its report."""
    folder = tmp_path_factory.mktemp("run")
    comparison = synthetic_comparison(models=3, **FEW)
    write_report(comparison, folder)
    return comparison, folder


@pytest.fixture(scope="module")
def page(run):
    return (run[1] / "report.html").read_text(encoding="utf-8")


def written(comparison, folder):
    """The text of a comparison's page."""
    return write_report(comparison, folder).read_text(encoding="utf-8")


def text_of(page, section):
    """The words of a section."""
    inside = re.search(rf'<section id="{section}".*?</section>', page, re.DOTALL)[0]
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", inside)))


def test_it_leads_with_what_differs_most(run, page):
    comparison, _ = run
    lead = text_of(page, "leads")
    assert page.index('id="leads"') < page.index('id="models"') < page.index('id="findings"') < page.index("<figure")
    for label in comparison.others:
        rows = comparison.summary[comparison.summary["label"] == label]
        tested = rows["p"].notna().sum()
        assert f"{rows['significant'].sum()} of {tested} means over blocks" in lead
        most = rows[rows["significant"]].iloc[0]
        assert f"d = {most['effect']:.3g}".replace("-", "−") in lead
        assert f"n = {most['n']}" in lead
    assert "95 % interval" in lead
    assert re.search(r"q (<|=) 0\.\d", lead)
    assert "paired by image" in lead
    assert 'class="banner"><strong>Unpaired' not in page


def test_a_model_against_itself_says_that_nothing_differs(tmp_path):
    comparison = synthetic_comparison(equal=True, **FEW)
    page = written(comparison, tmp_path)
    lead = text_of(page, "leads")
    assert "nothing beyond the noise" in lead
    assert "Nothing differs" in lead
    assert "Most different" not in lead
    assert " in both." in lead
    assert not data_of(page, "differences")["significant"].any()
    assert ">yes<" not in page.split('id="summary"')[1].split("</table>")[0]


def test_noise_alone_is_called_noise(tmp_path):
    one, two = (with_values(synthetic_analysis(blocks=3, heads=2, channels=16, n=32)) for _ in range(2))
    two.per_image += np.random.default_rng(1).normal(scale=0.05, size=two.per_image.shape)
    lead = text_of(written(compare(one, two), tmp_path), "leads")
    assert "Nothing exceeds the noise" in lead
    assert "smallest q: " in lead


def test_unpaired_is_said_on_top_with_the_reason(tmp_path):
    comparison = synthetic_comparison(paired=False, **FEW)
    page = written(comparison, tmp_path)
    label = comparison.others[0]
    reason = comparison.pairing[label].reason
    banner = next(text for text in re.findall(r'<p class="banner">(.*?)</p>', page) if "Unpaired" in text)
    assert reason in banner
    assert page.index("Unpaired") < page.index("<main>")
    assert "Welch" in text_of(page, "leads")
    assert "unpaired" in summary_html(comparison)


def test_one_image_makes_no_test(tmp_path):
    lead = text_of(written(synthetic_comparison(n=1, **FEW), tmp_path), "leads")
    assert "not testable" in lead
    assert "1 image has no spread" in lead


def test_untrained_members_are_marked_everywhere(run, page):
    comparison, folder = run
    label = next(label for label, analysis in comparison.analyses.items() if analysis.untrained)
    assert label.endswith("(untrained)")
    banner = re.search(r'<p class="banner"><strong>Untrained.*?</p>', page)[0]
    assert label in banner
    models = page.split('id="models"')[1].split("</table>")[0]
    assert models.count(">untrained<") == 1
    for section in ("leads", "findings", "figures", "origin"):
        assert "(untrained)" in text_of(page, section), section
    for name in figures_of("comparison"):
        assert "(untrained)" in (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8"), name


def test_every_model_is_described_and_judged(run, page):
    comparison, _ = run
    models = data_of(page, "models").set_index("label")
    for label, analysis in comparison.analyses.items():
        assert models.loc[label, "blocks"] == analysis.blocks
        assert models.loc[label, "prefix"] == ", ".join(analysis.layout.prefix)
        assert models.loc[label, "sha256"] == analysis.provenance["weights"]["sha256"]
    verdicts = page.split('class="verdicts"')[1].split("</table>")[0]
    assert verdicts.count('class="chip') == 2 * len(comparison.labels)
    origin = text_of(page, "origin")
    assert origin.count("tokenlens analyze") == len(comparison.labels)


def test_figures_and_tables_have_their_data_in_the_page(run, page):
    comparison, folder = run
    names = [figure["id"] for figure in Page(page).all("figure")]
    assert names == figures_of("comparison")
    for name in names:
        assert len(data_of(page, name)) == len(figures.get(name).frame(comparison))
        assert (folder / "figures" / f"{name}.png").exists()
    for name in ("summary", "differences", "similarity", "table"):
        expected = getattr(comparison, name)
        data = data_of(page, name)
        assert list(data.columns) == list(expected.columns)
        assert len(data) == len(expected)
        np.testing.assert_allclose(data["value"].astype(float), expected["value"].astype(float), rtol=1e-5)


def test_what_applies_to_some_models_only_says_to_which(page, run):
    others = [label for label in run[0].labels if "reg4" not in label]
    entry = f"<code>reg_cls_cosine</code>: the model has no register token ({', '.join(others)})"
    assert entry in page


def test_the_page_stands_alone_and_its_links_lead_somewhere(page):
    elements = Page(page).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), (tag, attributes)
            assert target[:1] != "#" or target == "#" or target[1:] in ids, target
        for name in ("aria-labelledby", "aria-describedby"):
            assert name not in attributes or attributes[name] in ids
    for target in re.findall(r"url\(#([^)]*)\)", page):
        assert target in ids
    assert len(Page(page).scripts()) == 1


def test_two_models_of_twelve_blocks_make_a_page_of_modest_size(tmp_path):
    assert write_report(synthetic_comparison(), tmp_path).stat().st_size < 1.5e6


def test_the_same_comparison_makes_the_same_page_again(tmp_path):
    comparison = synthetic_comparison(**FEW)
    for analysis in comparison.analyses.values():
        analysis.table = analysis.table[analysis.table["metric"] == "norm_differentiation"]
    first, second = (write_report(comparison, tmp_path).read_bytes() for _ in range(2))
    assert first == second


def test_names_are_escaped(tmp_path):
    one = with_values(synthetic_analysis(blocks=2, heads=2, channels=16, model=EVIL))
    two = with_values(synthetic_analysis(blocks=2, heads=2, channels=16, model="</script><b>", untrained=True), seed=1)
    comparison = compare(one, two, labels=[EVIL, "<img src=x onerror=alert(1)>"])
    page = written(comparison, tmp_path)
    for text in (page, summary_html(comparison)):
        assert "<script>alert" not in text
        assert "<img" not in text
        assert "<b>" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert len(Page(page).scripts()) == 1


def test_the_notebook_summary_is_a_few_lines(run):
    text = summary_html(run[0])
    assert text.count("<li>") == len(run[0].others)
    assert "Most different" in text
    assert len(text) < 1500 * len(run[0].others)


def test_the_report_command_draws_a_comparison_again(tmp_path):
    comparison = synthetic_comparison(blocks=(2, 2), heads=2, channels=16)
    folder = comparison.save(tmp_path / "run", report=False)
    assert not (folder / "report.html").exists()
    result = tokenlens("report", folder, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told == {"labels": comparison.labels, "run": str(folder), "report": str(folder / "report.html")}
    assert comparison.baseline in (folder / "report.html").read_text(encoding="utf-8")
    assert "report.html" in (folder / "MANIFEST.json").read_text(encoding="utf-8")


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_disk_without_errors_or_requests(browser, run, width, scheme):
    path = run[1] / "report.html"
    tab, complaints, requests = opened(browser, path, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert asked_for(requests) == [path.as_uri()]
    assert complaints == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()


@pytest.mark.browser
def test_its_tables_filter_by_model_words_and_significance(browser, run):
    comparison, folder = run
    tab, complaints, _ = opened(browser, folder / "report.html")
    rows = comparison.differences
    label = comparison.others[1]
    tab.locator("#data-differences-rows summary").press("Enter")
    here = "[data-table=data-differences-table]"
    wait_for_rows(tab, "data-differences-table", len(rows))
    tab.select_option(f'select{here}[data-column="label"]', label)
    tab.fill(f'input[type="search"]{here}', "norm1 cosine")
    rows = rows[(rows["label"] == label) & (rows["site"] == "norm1")]
    rows = rows[rows["metric"].str.contains("cosine") | (rows["unit"] == "cosine")]
    wait_for_rows(tab, "data-differences-table", len(rows))
    tab.locator(f"input[type=checkbox]{here}").press("Space")
    wait_for_rows(tab, "data-differences-table", rows["significant"].sum())

    tab.locator("input[type=checkbox][data-table=summary]").press("Space")
    count = "document.querySelectorAll('#summary tbody tr').length"
    assert tab.evaluate(count) == comparison.summary["significant"].sum()
    heading = tab.locator("#summary thead th", has_text="difference")
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert complaints == []
    tab.close()


@pytest.mark.browser
def test_the_data_of_a_figure_and_of_the_differences_is_one_click_away(browser, run, tmp_path):
    comparison, folder = run
    tab, complaints, requests = opened(browser, folder / "report.html")
    name = figures_of("comparison")[0]
    path, arrived = saved(tab, name, tmp_path)
    frame = figures.get(name).frame(comparison)
    assert path.name.endswith(f"{name}.csv")
    assert list(arrived.columns) == list(frame.columns)
    np.testing.assert_allclose(arrived["value"].astype(float), frame["value"].astype(float), rtol=1e-5)
    _, arrived = saved(tab, "differences", tmp_path)
    np.testing.assert_allclose(arrived["difference"], comparison.differences["difference"], rtol=1e-5, atol=1e-12)
    assert arrived["label"].tolist() == comparison.differences["label"].tolist()
    assert complaints == []
    assert asked_for(requests) == [(folder / "report.html").as_uri()]
    tab.close()
