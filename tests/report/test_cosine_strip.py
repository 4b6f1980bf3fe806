"""The strip of photographs with their cosines before and after norm1."""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tokenlens
from tests.report.conftest import only
from tests.support.report_page import opened
from tests.support.synthetic_analysis import synthetic_analysis
from tests.support.synthetic_photographs import with_photographs
from tokenlens.analysis.block_numbers import format_number
from tokenlens.report import write_report
from tokenlens.report.cosine_strip import cosine_strip

SMALL = {"blocks": 8, "heads": 2, "channels": 16, "grid": (4, 6)}


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"), dtype=int)


def test_it_has_the_means_of_the_maps_and_one_scale_for_all():
    analysis = with_photographs(synthetic_analysis(**SMALL))
    strip = cosine_strip({"model": analysis})
    kept = analysis.photographs
    assert [photograph.name for photograph in strip.photographs] == list(kept.names)
    row = strip.photographs[1].models[0]
    assert row.blocks == [0, 1, 3, 4, 6, 7]
    for place, block in enumerate(row.blocks):
        for side, maps in enumerate((row.before, row.after)):
            mean = kept.cosines[1, side, block].astype(float).mean()
            assert float(maps[place].mean.replace("−", "-")) == pytest.approx(mean, abs=0.0051)
    before, after = pixels(row.before[0].picture), pixels(row.after[0].picture)
    assert before.shape == (4, 6, 3)
    assert (before[..., 0] > before[..., 2]).all()  # red: positive
    assert (after.mean((0, 1))[2] > after.mean((0, 1))[0]).all()  # blue: negative
    assert float(strip.limit) >= float(np.abs(kept.cosines).max()) - 0.01
    numbers = strip.numbers
    first = row.before[0].first
    assert numbers["cosine"][first : first + 24].to_numpy() == pytest.approx(kept.cosines[1, 0, 0].ravel(), abs=6e-4)


def test_without_maps_there_is_none_and_models_share_only_the_same_images():
    assert cosine_strip({"model": synthetic_analysis(**SMALL)}) is None
    one, two = (with_photographs(synthetic_analysis(**SMALL), images=images) for images in (1, 2))
    assert len(cosine_strip({"one": one, "two": two}).photographs) == 1
    assert [row.label for row in cosine_strip({"one": one, "two": two}).photographs[0].models] == ["one", "two"]


def test_a_page_without_pixels_has_maps_only(tmp_path):
    analysis = with_photographs(only(synthetic_analysis(**SMALL), "token_norm"), pixels=False)
    text = write_report(analysis, tmp_path).read_text(encoding="utf-8")
    assert "data:image/png" in text
    assert "data:image/jpeg" not in text


SEEN = """(selector) => [...document.querySelectorAll(selector)].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.width > 0 && box.top >= 0 && box.bottom <= innerHeight && box.right <= innerWidth;
}).map((one) => one.innerText)"""
"""Texts of the elements that are on the screen without scrolling."""


def numbers(texts):
    return [float(text.replace("\u2212", "-").removesuffix("\u00a0%").removesuffix(" %")) for text in texts]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 1400)])
def test_sentence_strip_and_bars_are_seen_without_scrolling(browser, tmp_path, width, height):
    analysis = with_photographs(only(synthetic_analysis(), "norm_differentiation"))
    path = write_report(analysis, tmp_path)
    tab, complaints, _ = opened(browser, path, viewport={"width": width, "height": height})
    sentence, means, bars = (tab.evaluate(SEEN, selector) for selector in ("h1", ".map strong", ".stages dd strong"))
    assert "the norm before attention pulls [CLS] away from the patches in all 12 blocks" in sentence[0]
    assert len(means) == 12
    kept = analysis.photographs
    expected = kept.cosines[0][:, [0, 2, 4, 7, 9, 11]].astype(float).mean((2, 3)).ravel()
    np.testing.assert_allclose(numbers(means), expected, atol=0.0051)
    assert numbers(bars) == [10, 60, 30]
    assert len(tab.evaluate(SEEN, ".chips a")) == 5 or width < 1000
    tab.locator("#photograph-0").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("[...document.querySelectorAll('.photograph')].findIndex((one) => one.offsetParent)") == 1
    tab.locator(".grid.n1 .map img").first.hover()
    tab.locator("#tip", has_text="cosine +0.").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
    tab.close()


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """Return an analysis of DINOv2-S on a few photographs, and its page."""
    data = Path(os.environ.get("TOKENLENS_TEST_DATA", "nowhere"))
    weights = data / "weights" / "dinov2_vits14.safetensors"
    if not weights.exists():
        pytest.skip("TOKENLENS_TEST_DATA does not point to the real weights and photographs")
    options = {"checkpoint": weights, "img_size": 224, "metrics": ["norm_differentiation"]}
    analysis = tokenlens.analyze("vit_small_patch14_dinov2", data / "photos", limit=10, **options)
    return analysis, write_report(analysis, tmp_path_factory.mktemp("dinov2"))


@pytest.mark.pretrained
@pytest.mark.browser
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_first_screen_of_dinov2_answers(browser, dinov2, width, height):
    """1280 × 900: sentence, strip, bars and chips; a phone: the sentence and the strip's first rows."""
    analysis, path = dinov2
    tab, complaints, _ = opened(browser, path, viewport={"width": width, "height": height})
    [sentence] = tab.evaluate(SEEN, "h1")
    found = analysis.select("norm_differentiation", site="norm1", group="cls-patch").groupby("part")["value"].mean()
    cosines = f"cosine {format_number(found['before'])} → {format_number(found['after'])}"
    assert re.fullmatch(
        r"In vit_small_patch14_dinov2, the norm before attention pulls \[CLS\] away from the patches "
        rf"in (all|\d+ of) 12 blocks: {re.escape(cosines)}\.",
        sentence.replace("\N{NO-BREAK SPACE}", " "),
    )
    means = tab.evaluate(SEEN, ".grid.n0 .map strong")
    kept = analysis.photographs.cosines[0][:, [0, 2, 4, 7, 9, 11]].astype(float).mean((2, 3)).ravel()
    np.testing.assert_allclose(numbers(means), kept[: len(means)], atol=0.0051)
    if width < 1000:
        assert len(means) >= 6
        assert tab.evaluate(SEEN, ".photograph")
    else:
        assert len(means) == 12
        shares = {part: 100 * found[part] / found["total"] for part in ("centring", "gamma", "beta")}
        np.testing.assert_allclose(numbers(tab.evaluate(SEEN, ".stages dd strong")), list(shares.values()), atol=0.51)
        widths = tab.evaluate("[...document.querySelectorAll('.track .bar')].map((one) => one.offsetWidth)")
        longest = max(map(abs, shares.values()))
        np.testing.assert_allclose(np.array(widths) / max(widths), np.abs(list(shares.values())) / longest, atol=0.03)
        assert len(tab.evaluate(SEEN, ".chips a")) == 5
        picture = tab.screenshot()
        assert len(np.unique(np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).reshape(-1, 3), axis=0)) > 1000
    assert complaints == []
    tab.close()
