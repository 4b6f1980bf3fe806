"""Scales of the widget's panels: their labels are exact, and models share them by choice."""

import numpy as np
import pytest

from tokenlens.explorer.exploration import Selection, View
from tokenlens.explorer.panels import panels_of, set_scales


def view(largest: float, token="cls", **maps) -> View:
    cosine_hw = np.linspace(-0.1, largest, 16, dtype=np.float32).reshape(4, 4)
    return View(1, token, cosine_hw=cosine_hw, before_hw=cosine_hw / 2, **maps)


def scaled(*views: View, shared: bool = False):
    selection = Selection(0, 1, "norm1", None, "cls")
    return [{p.key: p for p in panels} for panels in set_scales([panels_of(v, selection) for v in views], shared)]


def test_before_and_after_have_one_scale_around_zero():
    ((panels),) = scaled(view(0.374))
    assert panels["cosine"].limits == panels["before"].limits == (-0.38, 0.38)
    assert panels["cosine"].labels == ("−0.38", "0.38")
    assert panels["before"].title == "cosine to [CLS], before norm1"
    assert panels["cosine"].title == "cosine to [CLS], after norm1"


def test_models_share_a_scale_by_choice():
    apart = scaled(view(0.2), view(0.6))
    assert [panels["cosine"].limits[1] for panels in apart] == [0.2, 0.6]
    together = scaled(view(0.2), view(0.6), shared=True)
    assert {panels[key].limits for panels in together for key in ("cosine", "before")} == {(-0.6, 0.6)}


def test_the_token_itself_sets_no_scale_and_is_marked_as_beyond_it():
    cosine_hw = np.full((4, 4), 0.31, dtype=np.float32)
    cosine_hw[1, 2] = 1
    (panels,) = scaled(View(1, (1, 2), cosine_hw=cosine_hw))
    assert panels["cosine"].limits == (-0.31, 0.31)
    assert panels["cosine"].labels == ("−0.31", "≥ 0.31")


@pytest.mark.parametrize("largest", [0.996, 1.0, 1.0000002])
def test_a_cosine_is_never_said_to_exceed_one(largest):
    (panels,) = scaled(view(largest))
    assert panels["cosine"].limits == (-1, 1)
    assert panels["cosine"].labels == ("−1", "1")


def test_every_label_is_the_number_that_the_colours_end_at():
    generator = np.random.default_rng(0)
    for scale in 10.0 ** generator.uniform(-1, 3, 50):
        maps = {name: generator.gamma(1.0, scale, (6, 6)).astype(np.float32) for name in ("attention_hw", "norms_hw")}
        (panels,) = scaled(View(0, "cls", **maps))
        for panel in panels.values():
            for end, label, beyond in zip(panel.limits, panel.labels, ("≤ ", "≥ "), strict=True):
                assert float(label.removeprefix(beyond)) == pytest.approx(end, rel=1e-12)
            assert panel.labels[1].startswith("≥ ") == (panel.values.max() > panel.limits[1] * (1 + 1e-4))


def test_the_attention_of_cls_is_not_shown_twice():
    row_hw = np.ones((4, 4), dtype=np.float32)
    selection = Selection(0, 1, "norm1", None, "cls")
    keys = {
        token: [p.key for p in panels_of(View(1, token, attention_hw=row_hw, cls_attention_hw=row_hw), selection)]
        for token in ("cls", "reg0")
    }
    assert keys == {"cls": ["attention"], "reg0": ["attention", "cls_attention"]}
