"""The widget shows what NumPy computes from the recording, draws it in a browser and receives selections."""

# Shapes: H heads, T tokens, D channels.

from __future__ import annotations

import dataclasses
import sys
from functools import cache

import numpy as np
import pytest
import torch

import tokenlens
from tests.support.tiny_models import KINDS, build, images, tiny_timm
from tokenlens.explorer.exploration import Exploration, Selection, View, grid_share
from tokenlens.families.timm_vit import TimmViT
from tokenlens.overlays.selection import position_of
from tokenlens.recording.recording import Recording
from tokenlens.tokens import TokenLayout


@cache
def recorded(kind: str, patterns: bool | None = None) -> Recording:
    return tokenlens.record(build(kind), images(kind, 3), img_size=KINDS[kind].image_size, patterns=patterns)


def numbers(view: View) -> dict[str, float]:
    return {number.label: number.value for number in view.numbers}


def only(exploration: Exploration, **changes) -> View:
    (view,) = exploration.views(exploration.choose(exploration.start(), **changes))
    return view


def cosine(x_D: np.ndarray, y_D: np.ndarray) -> float:
    return float(x_D @ y_D / np.linalg.norm(x_D) / np.linalg.norm(y_D))


@pytest.mark.parametrize("token", ["cls", "reg2", (3, 1)])
def test_views_agree_with_numpy(token):
    recording = recorded("timm_dinov2_registers", patterns=True)
    layout, at = recording.layout, position_of(recording.layout, token)
    view = only(Exploration([recorded("timm_dinov2_registers")]), image=2, block=0, site="resid_mid", token=token)
    x_TD = recording[0, "resid_mid"][2].double().numpy()
    patches_PD = x_TD[layout.patch_slice]
    assert view.notes == []
    assert view.cosine_hw is not None
    np.testing.assert_allclose(view.cosine_hw.ravel(), [cosine(x_TD[at], p_D) for p_D in patches_PD], atol=1e-5)
    pattern_TT = recording.patterns[0][2].double().mean(0).numpy()
    for shown_hw, row in ((view.attention_hw, at), (view.cls_attention_hw, 0)):
        weights = pattern_TT[row, layout.patch_slice]
        assert shown_hw is not None
        np.testing.assert_allclose(shown_hw.ravel(), weights / weights.mean(), rtol=1e-4)
    middle = np.median(np.linalg.norm(patches_PD, axis=1))
    norm = np.linalg.norm(x_TD[at])
    expected = {
        "norm ‖x‖": norm,
        "‖x‖ / median patch": norm / middle,
        "cosine to [CLS]": cosine(x_TD[at], x_TD[0]),
        "cosine to mean patch": cosine(x_TD[at], patches_PD.mean(0)),
        "attention to [CLS]": 100 * pattern_TT[at, 0],
        "attention to registers": 100 * pattern_TT[at, 1:5].sum(),
        "attention to patches": 100 * pattern_TT[at, 5:].sum(),
        "attention to itself": 100 * pattern_TT[at, at],
        "attention from [CLS]": 100 * pattern_TT[0, at],
    }
    if not isinstance(token, str):
        other_PD = recording[0, "resid_mid"][1].double().numpy()[layout.patch_slice]
        expected["high-norm token"] = float(norm > 3 * middle)
        expected["cosine to nearest patch"] = max(cosine(x_TD[at], p_D) for p_D in other_PD)
    assert numbers(view) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_one_head_is_chosen_for_attention_and_for_q_k_v():
    recording = recorded("timm_dinov2_registers", patterns=True)
    exploration = Exploration([recording])
    at = position_of(recording.layout, (0, 2))
    one, mean = (only(exploration, block=1, site="k", head=head, token=(0, 2)) for head in (1, None))
    k_HTd = recording[1, "k"][0].double().numpy()
    norms_H = np.linalg.norm(k_HTd[:, at], axis=-1)
    assert numbers(one)["norm ‖x‖"] == pytest.approx(norms_H[1], rel=1e-5)
    assert numbers(mean)["norm ‖x‖"] == pytest.approx(norms_H.mean(), rel=1e-5)
    cosines_H = [cosine(x_Td[at], x_Td[0]) for x_Td in k_HTd]
    assert numbers(one)["cosine to [CLS]"] == pytest.approx(cosines_H[1], abs=1e-5)
    assert numbers(mean)["cosine to [CLS]"] == pytest.approx(np.mean(cosines_H), abs=1e-5)
    pattern_HTT = recording.patterns[1][0].numpy()
    assert numbers(one)["attention to [CLS]"] == pytest.approx(100 * pattern_HTT[1, at, 0], rel=1e-4)
    # At the other sites the head applies to attention only.
    assert numbers(only(exploration, site="norm1", head=1))["cosine to [CLS]"] == pytest.approx(1, abs=1e-5)


def test_high_norm_tokens_are_marked():
    recording = recorded("timm_vit")
    tensors = {key: x.clone() for key, x in recording.items()}
    tensors[1, "resid_post"][0, 1 + 7] *= 100
    view = only(Exploration([dataclasses.replace(recording, tensors=tensors)]), token=(1, 3), site="resid_post")
    assert view.high_hw is not None
    assert np.argwhere(view.high_hw).tolist() == [[1, 3]]
    assert numbers(view)["high-norm token"] == 1


@pytest.mark.parametrize("kind", ["timm_siglip", "timm_naflexvit", "timm_parallel", "hf_vit_eager", "timm_vit_wide"])
def test_models_of_every_kind(kind):
    exploration = Exploration([recorded(kind)])
    rows, columns = recorded(kind).layout.grid
    assert exploration.start().token == (exploration.prefix[0] if KINDS[kind].prefix else (rows // 2, columns // 2))
    for site in exploration.sites:
        view = only(exploration, site=site, token=(rows - 1, columns - 1))
        assert view.notes == []
        assert view.cosine_hw is not None
        assert view.cosine_hw.shape == (rows, columns)
        assert (view.cls_attention_hw is not None) == ("cls" in KINDS[kind].prefix)
        assert ("cosine to [CLS]" in numbers(view)) == ("cls" in KINDS[kind].prefix)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"image": 3}, "images 0 to 2, got 3"),
        ({"block": 2}, "there is no block 2: recorded, and counted from 0, are 0 to 1"),
        ({"site": "layer"}, "no site 'layer' was recorded; recorded sites: resid_pre"),
        ({"head": 2}, "heads 0 to 1, got 2; None is their mean"),
        ({"token": "reg0"}, "no token 'reg0'; it has cls and patches"),
        ({"token": [4, 0]}, r"row 0 to 3 and column 0 to 3, got \(4, 0\)"),
        ({"other": 3}, "images 0 to 2, got 3"),
        ({"layer": 1}, "a selection has image, block, site, head, token, other, shared, got layer"),
    ],
)
def test_unknown_selections_are_refused(changes, text):
    exploration = Exploration([recorded("timm_vit")])
    with pytest.raises(LookupError, match=text):
        exploration.choose(exploration.start(), **changes)


def test_a_choice_changes_nothing_else():
    exploration = Exploration([recorded("timm_vit")])
    start = exploration.start()
    assert start == Selection(0, 1, "norm1", None, "cls", other=1)
    assert exploration.choose(start, block=-2, token=[1, 2]) == Selection(0, 0, "norm1", None, (1, 2), other=1)


def test_a_patch_is_never_searched_in_its_own_image():
    exploration = Exploration([recorded("timm_vit")])
    assert exploration.choose(exploration.start(), image=1).other == 2
    assert exploration.choose(exploration.start(), image=2, other=2).other == 0
    single = Exploration([tokenlens.record(build("timm_vit"), images("timm_vit", 1))])
    assert single.start().other is None
    assert only(single, token=(0, 0)).match is None


def test_before_and_after_a_norm():
    recording = recorded("timm_dinov2_registers")
    for site, before in (("norm1", (0, "resid_pre")), ("norm2", (0, "resid_mid")), ("final_norm", (1, "resid_post"))):
        view = only(Exploration([recording]), block=0, site=site, token="reg1")
        x_TD = recording[before][0].double().numpy()
        expected = [cosine(x_TD[2], p_D) for p_D in x_TD[recording.layout.patch_slice]]
        assert view.notes == []
        np.testing.assert_allclose(view.before_hw.ravel(), expected, atol=1e-5)
    assert only(Exploration([recording]), site="resid_mid").before_hw is None


def test_a_norm_after_attention_has_no_tokens_before_it():
    view = only(Exploration([recorded("timm_post_norm")]), token=(1, 1))
    assert view.before_hw is None
    assert view.cosine_hw is not None
    assert "norm1 of block 1 does not normalize resid_pre (as in post-norm models)" in view.notes[0]


def test_heads_components_norms_and_the_nearest_patch():
    recording = recorded("timm_dinov2_registers", patterns=True)
    layout = recording.layout
    view = only(Exploration([recording]), token=(1, 2), site="norm2", other=2)
    row_HP = recording.patterns[1][0, :, position_of(layout, (1, 2)), layout.patch_slice].double().numpy()
    np.testing.assert_allclose(
        view.heads_Hhw.reshape(len(row_HP), -1), row_HP / row_HP.mean(1, keepdims=True), rtol=1e-4
    )
    np.testing.assert_allclose(view.heads_Hhw.shape, (2, 4, 4))
    patches_PD = layout.patches_of(recording[1, "norm2"].double()).numpy()
    norms_P = np.linalg.norm(patches_PD[0], axis=-1)
    np.testing.assert_allclose(view.norms_hw.ravel(), norms_P / np.median(norms_P), rtol=1e-5)
    cosines = [cosine(patches_PD[0][6], p_D) for p_D in patches_PD[2]]
    assert view.match.nearest == divmod(int(np.argmax(cosines)), 4)
    assert view.match.cosine == pytest.approx(max(cosines), abs=1e-6)
    assert view.colours_hw3.shape == (4, 4, 3)
    assert only(Exploration([recording]), token="cls").match is None


# -- two models


@cache
def deep() -> Recording:
    """Six blocks, three heads, a grid of 2 × 2, no registers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny_timm("vit_tiny_patch16_224", depth=6, embed_dim=24, num_heads=3, img_size=32, patch_size=16)
    return tokenlens.record(model, images("timm_dinov2_registers", 3))


def test_another_model_shows_the_same_depth_and_position():
    first = recorded("timm_dinov2_registers")  # two blocks, a grid of 4 × 4
    exploration = Exploration([first, deep()])
    assert exploration.prefix == ["cls", "reg0", "reg1", "reg2", "reg3"]
    for block, patch, other_block, other_patch in ((0, (0, 3), 1, (0, 1)), (1, (3, 1), 4, (1, 0))):
        one, two = exploration.views(exploration.choose(exploration.start(), block=block, token=patch))
        assert (one.block, one.token, two.block, two.token) == (block, patch, other_block, other_patch)
        alone = only(Exploration([deep()]), block=other_block, token=other_patch)
        np.testing.assert_array_equal(two.cosine_hw, alone.cosine_hw)
        assert two.numbers == alone.numbers


def test_a_model_says_what_it_lacks():
    exploration = Exploration([recorded("timm_dinov2_registers"), deep()])
    one, two = exploration.views(exploration.choose(exploration.start(), token="reg1"))
    assert one.notes == []
    assert "no token 'reg1'; it has cls and patches" in two.notes[0]
    one, two = exploration.views(exploration.choose(exploration.start(), head=2))
    assert "heads 0 to 1, got 2" in one.notes[0]
    assert one.cosine_hw is not None
    assert one.attention_hw is None
    assert two.notes == []


def test_recordings_of_other_images_are_refused():
    other = tokenlens.record(build("timm_vit"), images("timm_vit", 2))
    with pytest.raises(ValueError, match=r"different images: VisionTransformer has 3 images.*has 2 images"):
        tokenlens.explore(recorded("timm_dinov2_registers"), other=other)


# -- the widget

START = {"image": 0, "block": 1, "site": "norm1", "head": None, "token": "cls", "other": 1, "shared": False}


def panel(widget, key: str) -> dict:
    return next(panel for panel in widget.views[0]["panels"] if panel["key"] == key)


def shown_values(widget, key: str) -> np.ndarray:
    return np.frombuffer(panel(widget, key)["values"], dtype="<f4")


def test_the_widget_follows_its_selection():
    widget = tokenlens.explore(build("timm_vit"), images("timm_vit"))
    assert (len(widget.views), len(widget.photographs)) == (1, 1)
    photographs = widget.photographs
    before = shown_values(widget, "cosine")
    assert widget.select(block=0, token=(1, 2)) is widget
    assert widget.selection == {**START, "block": 0, "token": [1, 2]}
    shown = shown_values(widget, "cosine").reshape(4, 4)
    np.testing.assert_array_equal(shown, only(widget.exploration, block=0, token=(1, 2)).cosine_hw)
    assert (shown_values(widget, "cosine") != before).any()
    assert widget.photographs is photographs
    widget.select(image=1)
    assert widget.photographs != photographs
    assert "image 1, block 0, norm1, token [1, 2]" in repr(widget)
    with pytest.raises(LookupError, match="there is no block 9"):
        widget.select(block=9)
    assert widget.selection["block"] == 0


def test_options_of_record_are_passed_on():
    widget = tokenlens.explore(build("timm_vit"), images("timm_vit", 3), limit=2, sites=["norm1"], blocks=[1])
    assert widget.exploration.sites == ["norm1", "q", "k"]
    assert widget.exploration.blocks == [1]
    assert len(widget.exploration.images) == 2
    assert len(panel(widget, "attention")["values"]) == 4 * 16
    with pytest.raises(ValueError, match=r"exceed its budget of 0 MiB.*record fewer images"):
        tokenlens.explore(build("timm_vit"), images("timm_vit"), max_bytes=1000)


def test_two_models_by_module():
    widget = tokenlens.explore(build("timm_vit"), images("timm_vit"), other=build("timm_deit3"), pretrained=False)
    assert [model["title"] for model in widget.choices["models"]] == ["VisionTransformer (untrained)"] * 2
    assert len(widget.views) == len(widget.photographs) == len(widget.others) == 2


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "tokenlens.explorer.explorer", raising=False)
    with pytest.raises(ImportError, match=r'explore needs anywidget, .*pip install "tokenlens-vit\[notebook\]"'):
        tokenlens.explore(recorded("timm_vit"))


# -- the page


@pytest.fixture
def page(browser):
    tab = browser.new_page(viewport={"width": 1000, "height": 700})
    tab.complaints = []
    tab.on("console", lambda message: tab.complaints.append(message.text))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    yield tab
    tab.close()


def drawn(page, panel: str) -> str:
    """Return a panel of the first model as a PNG in base64."""
    return page.evaluate("(panel) => document.querySelector(`[data-panel=${panel}] canvas.map`).toDataURL()", panel)


@pytest.mark.browser
def test_the_page_draws_and_chooses(page):
    pytest.importorskip("anywidget", reason="the extra [notebook] is not installed")
    from tests.support.browser_widget import open_widget

    widget = tokenlens.explore(recorded("timm_dinov2_registers"), other=deep())
    open_widget(page, widget)
    page.wait_for_function("document.querySelector('h4').textContent")
    page.wait_for_function("document.querySelector('[data-panel=norm]')")
    keys = ("photograph", "before", "cosine", "attention", "components", "norm")
    pictures = {drawn(page, key) for key in keys}
    assert len(pictures) == len(keys), "every panel shows something else"
    assert page.locator(".model").first.locator("[data-panel]").count() == len(keys)
    assert min(map(len, pictures)) > 5000
    smallest = "Math.min(...[...document.querySelectorAll('.tokenlens-explorer *')].filter((e) => e.textContent)"
    assert page.evaluate(f"{smallest}.map((e) => parseFloat(getComputedStyle(e).fontSize)))") >= 10

    canvas = page.locator("[data-panel=cosine] canvas.map")
    box = canvas.first.bounding_box()
    before = drawn(page, "cosine")
    canvas.first.click(position={"x": box["width"] * 0.6, "y": box["height"] * 0.3})
    page.wait_for_function("document.querySelector('.panels').textContent.includes('cosine to patch (1,\u00a02)')")
    assert widget.selection["token"] == [1, 2]
    assert drawn(page, "cosine") != before
    assert page.locator(".selected").inner_text() == "patch (1, 2)"
    shown = dict(zip(*[iter(page.locator(".model").first.locator("td").all_inner_texts())] * 2, strict=True))
    assert shown == dict(widget.views[0]["numbers"])

    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")  # the border holds it
    page.keyboard.press("[")
    page.wait_for_function("document.querySelector('h4').textContent.includes('block 0')")
    assert widget.selection == {**START, "block": 0, "token": [2, 3]}
    page.get_by_label("find patch in").select_option("2")
    page.wait_for_function("document.querySelector('[data-panel=match]').textContent.includes('image 2')")
    marked = widget.exploration.views(Selection(**{**widget.selection, "token": (2, 3)}))[0].match.nearest
    assert widget.views[0]["nearest"] == list(marked)
    page.get_by_label("one scale").check()
    page.wait_for_function("document.querySelectorAll('[data-panel=cosine] .scale span').length == 6")
    page.wait_for_timeout(100)
    highs = page.locator("[data-panel=cosine] .scale span:last-child").all_inner_texts()
    assert highs[0].removeprefix("≥ ") == highs[1].removeprefix("≥ ")
    page.locator(".heads button").nth(1).click()
    page.wait_for_function("document.querySelector('.heads button:nth-of-type(2)').ariaPressed == 'true'")
    assert widget.selection == {**START, "block": 0, "token": [2, 3], "other": 2, "shared": True, "head": 1}

    page.get_by_role("button", name="register 1").click()
    page.wait_for_function("document.querySelectorAll('.notes')[1].textContent.includes('no token')")
    assert widget.selection["token"] == "reg1"
    for label, value in (("image", "2"), ("site", "norm2"), ("head", "0")):
        page.get_by_label(label, exact=True).select_option(value)
    page.wait_for_function("document.querySelector('h4').textContent.includes('norm2')")
    chosen = {"image": 2, "block": 0, "site": "norm2", "head": 0, "token": "reg1", "other": 0, "shared": True}
    assert widget.selection == chosen
    photograph = page.locator("[data-panel=photograph] canvas.map").nth(1)
    photograph.click(position={"x": 5, "y": 5})  # the other model's grid of 2 × 2
    page.wait_for_function("document.querySelector('.selected').textContent == 'patch (1, 1)'")

    page.evaluate("cleanUp()")
    assert page.evaluate("listening()") == 0
    assert page.complaints == []


def test_maps_cover_the_patches_and_clicks_find_them():
    dropped, whole = recorded("dinov3_hub"), recorded("timm_vit")
    assert grid_share(dropped) == (16 / 20, 40 / 41)
    assert grid_share(whole) == (1, 1)
    assert tokenlens.explore(dropped).choices["models"][0]["share"] == [16 / 20, 40 / 41]
    both = Exploration([dropped, whole])
    # Row 1 of 2 ends at pixel 16 of 20: its centre is at .6 of the height, in row 2 of 4.
    _, other = both.views(both.choose(both.start(), token=(1, 4)))
    assert other.token == (2, 3)


def test_the_mean_of_several_class_tokens_can_be_selected():
    class Two(TimmViT):
        def layout(self, model, image_size):
            return TokenLayout((4, 4), ("cls", "cls", "reg", "reg", "other"), patch_size=(8, 8))

    model, x = build("timm_dinov2_registers"), images("timm_dinov2_registers", 2)
    exploration = Exploration([tokenlens.record(model, x, family=Two())])
    assert exploration.prefix == ["cls", "cls0", "cls1", "reg0", "reg1", "other"]
    mean, *single = (only(exploration, token=token) for token in ("cls", "cls0", "cls1"))
    assert mean.cosine_hw == pytest.approx((single[0].cosine_hw + single[1].cosine_hw) / 2, abs=1e-6)
    expected = (numbers(single[0])["norm ‖x‖"] + numbers(single[1])["norm ‖x‖"]) / 2
    assert numbers(mean)["norm ‖x‖"] == pytest.approx(expected)
    shares = {label: value for label, value in numbers(mean).items() if label.startswith("attention to ")}
    assert sum(shares.values()) - shares["attention to itself"] == pytest.approx(100, abs=1e-3)
