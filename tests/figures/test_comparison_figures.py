"""The numbers of each figure of a comparison, and the colours of models."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tests.support.figure_subjects import figure_of, subject, texts
from tests.support.synthetic_comparison import synthetic_comparison
from tokenlens.figures import NothingToDraw, draw, figures
from tokenlens.figures.compare_differences import effect_ticks
from tokenlens.figures.style import COLOURS, MODEL_COLOURS, STAGE_COLOURS


def test_models_do_not_share_colours_with_token_groups():
    assert not {colour.lower() for colour in MODEL_COLOURS} & {
        colour.lower() for colour in (*COLOURS.values(), *STAGE_COLOURS.values())
    }
    for seen_as in (np.eye(3), DEUTERANOPIA, PROTANOPIA):
        seen = [lab(seen_as @ linear(colour)) for colour in MODEL_COLOURS]
        for one, two in itertools.combinations(seen, 2):
            assert np.linalg.norm(one - two) > 12


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
PROTANOPIA = np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]])
DEUTERANOPIA = np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]])


def linear(colour):
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear RGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_a_model_keeps_its_colour_where_another_is_left_out():
    frame = figures.module("compare_differentiation").frame(subject("one without cls"))
    assert set(frame["model_number"]) == {1}
    profile = figures.module("compare_depth_profile").frame(subject("one without cls"))
    assert set(profile.loc[profile["group"] == "patch-patch", "model_number"]) == {0, 1, 2}
    assert set(profile.loc[profile["group"] == "cls-patch", "model_number"]) == {0, 1}
    text = "".join(texts(figure_of("one without cls", "compare_differentiation")).split())
    assert "leftout:vit_little_patch16_reg4_gap_256:noCLS–patch" in text


def test_what_cannot_be_drawn_says_why():
    for name, reason in (
        ("compare_differentiation", "has no group 'cls-patch'"),
        ("compare_similarity", "no two models' features can be compared: "),
    ):
        with pytest.raises(NothingToDraw, match=reason):
            draw(subject("none with cls"), name)
    with pytest.raises(NothingToDraw, match="has a standard deviation over images"):
        draw(subject("one block, one image"), "compare_differences")
    with pytest.raises(NothingToDraw, match=r"fewer than two models have knn: .*knn not computed"):
        draw(subject("two"), "compare_depth_profile", metric="knn")
    with pytest.raises(NothingToDraw, match=r"features can be compared: .*images"):
        draw(subject("unpaired"), "compare_similarity")


# Single figures


def test_profiles_overlay_on_relative_depth_and_stand_on_blocks_when_asked():
    figure = figure_of("six of different depth", "compare_depth_profile")
    x = np.concatenate([line.get_xdata() for line in figure.axes[0].lines if len(line.get_xdata()) > 2])
    assert ((x > 0) & (x < 1)).all()
    blocks = draw(subject("six of different depth"), "compare_depth_profile", axis="block")
    assert max(line.get_xdata().max() for line in blocks.axes[0].lines if len(line.get_xdata()) > 2) == 23
    with pytest.raises(ValueError, match="axis must be 'relative'"):
        draw(subject("two"), "compare_depth_profile", axis="depth")


def test_profiles_take_metrics_sites_and_blocks():
    frame = figures.module("compare_depth_profile").frame
    assert set(frame(subject("two"))["panel"]) == {"before norm1", "after norm1", "before norm2", "after norm2"}
    chosen = frame(subject("two"), metric="token_norm", sites="resid_post", part="mean", groups=["cls"])
    assert set(chosen["site"]) == {"resid_post"}
    assert set(chosen["group"]) == {"cls"}
    for options in (
        {"metric": "cls_patch_cosine"},
        {"metric": "attention_entropy"},
        {"sites": "norm1", "groups": "cls-patch"},
        {"metric": "token_norm", "part": "mean", "log": True},
        {"metric": "update_ratio"},
    ):
        assert isinstance(draw(subject("two"), "compare_depth_profile", width="single", **options), Figure)
    figure = draw(subject("two"), "compare_depth_profile", blocks="0-5", axis="block")
    assert {tuple(line.get_xdata()) for line in figure.axes[0].lines if len(line.get_xdata()) > 2} == {(*range(6),)}


def test_marks_are_where_the_difference_exceeds_the_noise():
    comparison = subject("two")
    frame = figures.module("compare_differentiation").frame(comparison)
    assert frame["significant"].any()
    assert (frame["significant"] == (frame["q"] < 0.05)).all()
    np.testing.assert_allclose(frame["difference"], frame["value"] - frame["baseline_value"], atol=1e-9)
    same = synthetic_comparison(models=2, n=16, equal=True)
    text = texts(draw(same, "compare_differentiation"))
    assert "q < 0.05 (0 of 24)" in text
    assert "paired by image" in text
    assert "unpaired" in texts(figure_of("unpaired", "compare_differentiation"))


def test_the_largest_differences_come_first_and_few_enough_to_read():
    frame = figures.module("compare_differences").frame(subject("two"))
    largest = frame.groupby("rank").agg(effect=("effect", lambda x: x.abs().max()), sure=("significant", "max"))
    assert 5 <= len(largest) <= 18
    sure = largest[largest["sure"]]
    assert (largest["sure"].astype(int).diff().dropna() <= 0).all()
    assert (sure["effect"].diff().dropna() <= 1e-9).all()
    assert not frame.duplicated(["metric", "part", "group", "label"]).any()
    inside = frame[frame["effect_low"].notna()]
    assert (inside["effect_low"] <= inside["effect"]).all()
    assert (inside["effect"] <= inside["effect_high"]).all()
    few = figures.module("compare_differences").frame(subject("two"), count=3, metrics="token_norm")
    assert few["rank"].nunique() <= 3
    assert set(few["metric"]) == {"token_norm"}


@pytest.mark.parametrize("width", ["single", "double"])
@pytest.mark.parametrize("kind", ["two", "unpaired"])
def test_the_axis_of_differences_covers_its_bars(kind, width):
    frame = figures.module("compare_differences").frame(subject(kind))
    panel = draw(subject(kind), "compare_differences", width=width).axes[0]
    values = frame[["effect", "effect_low", "effect_high"]].to_numpy(dtype=float)
    ticks = panel.get_xticks()
    assert ticks[0] <= np.nanmin(values)
    assert np.nanmax(values) <= ticks[-1]
    assert 0 in ticks
    assert "−0" not in [label.get_text() for label in panel.get_xticklabels()]
    assert effect_ticks(0.0, 0.0) == [0.0]


def test_heads_share_one_scale_for_each_kind():
    figure = draw(subject("two"), "compare_heads", width="single", quantities=["cls-patch", "cls-cls", "entropy"])
    shown = [panel.get_images()[0].get_clim() for panel in figure.axes if panel.get_images()]
    assert len(shown) == 6
    assert len(set(shown[:4])) == 1
    assert len(set(shown[4:])) == 1
    assert [panel.get_xlabel() + panel.get_ylabel() for panel in figure.axes[6:]] == [
        "entropy / log P",
        "share of attention",
    ]
    frame = figures.module("compare_heads").frame(subject("two"))
    for _, inside in frame.groupby(["label", "quantity", "block"], observed=True):
        assert inside.sort_values("rank")["value"].is_monotonic_increasing
    with pytest.raises(NothingToDraw, match="have no cls-reg per head"):
        draw(subject("two"), "compare_heads", quantities="cls-reg")


def test_similarity_shows_each_pair_once():
    comparison = subject("six of different depth")
    frame = figures.module("compare_similarity").frame(comparison)
    assert len(frame) == 2 * 15
    assert (frame["number_1"] < frame["number_2"]).all()


def test_stages_are_those_of_each_model():
    comparison = subject("two")
    frame = figures.module("compare_stage_split").frame(comparison)
    for label, inside in frame.groupby("label"):
        rows = comparison.analyses[label].select("norm_differentiation", site="norm1", group="cls-patch", part="gamma")
        mine = inside[(inside["stage"] == "gamma") & (inside["site"] == "norm1")]
        np.testing.assert_allclose(mine["value"], rows["value"])
    summary = figures.module("compare_summary").frame(comparison)
    means = summary[(summary["part_of_figure"] == "means") & (summary["group"] == "cls-patch")]
    wide = means.pivot(index=["label", "site"], columns="stage", values="value")
    np.testing.assert_allclose(wide[["centring", "gamma", "beta"]].sum(axis=1), wide["total"], atol=1e-9)


def test_the_summary_has_the_same_letters_at_both_widths():
    titles = []
    for width in ("single", "double"):
        figure = draw(subject("two"), "compare_summary", width=width)
        lettered = [panel.get_title(loc="left") for panel in figure.axes if panel.get_title(loc="left")[1:3] == "  "]
        titles.append(lettered)
    assert (
        titles[0]
        == titles[1]
        == ["a  before norm1", "b  stages of the norm", "c  differentiation", "d  final features"]
    )


@pytest.mark.parametrize("name", ["compare_summary", "compare_similarity"])
def test_two_models_get_numbers_rather_than_a_map_of_one_square(name):
    figure = draw(subject("two"), name)
    rows = figures.module("compare_similarity").frame(subject("two"))
    assert not [panel for panel in figure.axes if panel.get_images()]
    for value in rows["value"]:
        assert f"{value:.2f} [".replace("-", "−") in texts(figure)


def test_the_summary_leaves_out_what_is_not_there():
    frame = figures.module("compare_summary").frame(subject("unpaired"))
    assert set(frame["part_of_figure"]) == {"profile", "means"}
    assert "images" in texts(figure_of("unpaired", "compare_summary", "single"))
    with contextlib.suppress(NothingToDraw):
        assert "CLS–patch" not in texts(draw(subject("none with cls"), "compare_summary"))
