"""The page of a comparison: main differences, pairing, significance, and its tables and downloads in a browser."""

from __future__ import annotations

import re
from collections import Counter
from html import unescape

import numpy as np
import pytest

from tests.support.report_page import Page, data_of, opened, wait_for_rows
from tests.support.synthetic_analysis import synthetic_analysis
from tests.support.synthetic_comparison import synthetic_comparison, with_values
from tokenlens.comparison.compare import compare
from tokenlens.figures import figures, figures_of
from tokenlens.report.build import summary_html, write_report

FEW = {"blocks": (4, 4, 3), "heads": 3, "channels": 32}


@pytest.fixture(scope="module")
def run(reports):
    """Return a comparison of three models and the folder of its report."""
    comparison, path, _ = reports("comparison")
    return comparison, path.parent


@pytest.fixture(scope="module")
def page(reports):
    return reports("comparison")[2]


def written(comparison, folder):
    """Write a page and return its text."""
    return write_report(comparison, folder).read_text(encoding="utf-8")


def text_of(page, section):
    """Return the text of a section."""
    inside = re.search(rf'<section id="{section}".*?</section>', page, re.DOTALL)[0]
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", inside)))


def test_it_starts_with_the_main_differences(run, page):
    comparison, _ = run
    text = text_of(page, "main-differences")
    assert (
        page.index('id="main-differences"')
        < page.index('id="models"')
        < page.index('id="findings"')
        < page.index("<figure")
    )
    for label in comparison.others:
        rows = comparison.summary[comparison.summary["label"] == label]
        tested = rows["p"].notna().sum()
        assert f"{rows['significant'].sum()} of {tested} means over blocks" in text
        most = rows[rows["significant"]].iloc[0]
        assert f"d = {most['effect']:.3g}".replace("-", "−") in text
        assert f"n = {most['n']}" in text
    assert "95 % interval" in text
    assert re.search(r"q (<|=) 0\.\d", text)
    assert "paired by image" in text
    assert 'class="banner"><strong>Unpaired' not in page


@pytest.mark.usefixtures("without_figures")
def test_a_model_does_not_differ_from_itself(tmp_path):
    comparison = synthetic_comparison(equal=True, **FEW)
    page = written(comparison, tmp_path)
    text = text_of(page, "main-differences")
    assert "no significant difference" in text
    assert "Nothing differs" in text
    assert "Largest difference" not in text
    assert " in both." in text
    assert not data_of(page, "differences")["significant"].any()
    assert ">yes<" not in page.split('id="summary"')[1].split("</table>")[0]


@pytest.mark.usefixtures("without_figures")
def test_noise_is_not_significant(tmp_path):
    one, two = (with_values(synthetic_analysis(blocks=3, heads=2, channels=16, n=32)) for _ in range(2))
    two.per_image += np.random.default_rng(1).normal(scale=0.05, size=two.per_image.shape)
    text = text_of(written(compare(one, two), tmp_path), "main-differences")
    assert "for single blocks differ significantly (smallest q: " in text


@pytest.mark.usefixtures("without_figures")
def test_unpaired_models_are_announced_at_the_top_with_the_reason(tmp_path):
    comparison = synthetic_comparison(paired=False, **FEW)
    page = written(comparison, tmp_path)
    label = comparison.others[0]
    reason = comparison.pairing[label].reason
    banner = next(text for text in re.findall(r'<p class="banner">(.*?)</p>', page) if "Unpaired" in text)
    assert reason in banner
    assert page.index("Unpaired") < page.index("<main>")
    assert "Welch" in text_of(page, "main-differences")
    assert "unpaired" in summary_html(comparison)


@pytest.mark.usefixtures("without_figures")
def test_one_image_is_not_enough_for_a_test(tmp_path):
    text = text_of(written(synthetic_comparison(n=1, **FEW), tmp_path), "main-differences")
    assert "not testable" in text
    assert "1 image has no spread" in text


def test_untrained_members_are_marked_everywhere(run, page):
    comparison, folder = run
    label = next(label for label, analysis in comparison.analyses.items() if analysis.untrained)
    assert label.endswith("(untrained)")
    banner = re.search(r'<p class="banner"><strong>Untrained.*?</p>', page)[0]
    assert label in banner
    models = page.split('id="models"')[1].split("</table>")[0]
    assert models.count(">untrained<") == 1
    for section in ("main-differences", "findings", "figures", "provenance"):
        assert "(untrained)" in text_of(page, section), section
    for name in figures_of("comparison"):
        assert "(untrained)" in (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8"), name


def test_every_model_is_described_and_judged(run, page):
    comparison, _ = run
    models = data_of(page, "models").set_index("label")
    for label, analysis in comparison.analyses.items():
        assert models.loc[label, "blocks"] == analysis.blocks
        counts = Counter(analysis.layout.prefix)
        prefix = ", ".join(group if count == 1 else f"{count} × {group}" for group, count in counts.items())
        assert models.loc[label, "prefix"] == prefix
        assert models.loc[label, "sha256"] == analysis.provenance["weights"]["sha256"]
    verdicts = page.split('class="verdicts"')[1].split("</table>")[0]
    assert verdicts.count('class="chip') == 5 * len(comparison.labels)
    provenance = text_of(page, "provenance")
    assert provenance.count("tokenlens analyze") == len(comparison.labels)


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


def test_reasons_that_hold_for_some_models_name_them(page, run):
    others = [label for label in run[0].labels if "reg4" not in label]
    entry = f"<code>reg_cls_cosine</code>: the model has no register token ({', '.join(others)})"
    assert entry in page


def test_the_notebook_summary_is_a_few_lines(run):
    text = summary_html(run[0])
    assert text.count("<li>") == len(run[0].others)
    assert "Largest difference" in text
    assert len(text) < 1500 * len(run[0].others)


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
