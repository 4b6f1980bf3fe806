"""What holds for every figure of a comparison, then each one's own numbers."""

from __future__ import annotations

import contextlib
import itertools
from functools import cache
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tests.figures.test_figures import LONG_NAME, smallest_text, texts
from tests.support.synthetic_analysis import synthetic_analysis
from tests.support.synthetic_comparison import synthetic_comparison, with_values
from tokenlens.comparison.compare import compare
from tokenlens.figures.base import KINDS, NothingToDraw, draw, figures, figures_of, save_figure
from tokenlens.figures.style import COLOURS, MODEL_COLOURS, STAGE_COLOURS

NAMES = figures_of("comparison")
WIDTHS = ("double", "single")


def of(*kinds, **options):
    return compare(*(with_values(synthetic_analysis(**kind), seed=i) for i, kind in enumerate(kinds)), **options)


SUBJECTS = {
    "two": lambda: synthetic_comparison(models=2, n=16),
    "six of different depth": lambda: synthetic_comparison(models=6, n=16, blocks=(12, 24, 6)),
    "unpaired": lambda: synthetic_comparison(models=3, n=16, paired=False),
    "long names, 40 blocks, 24 heads": lambda: of(
        {"model": LONG_NAME, "blocks": 40, "heads": 24, "n": 8}, {"model": LONG_NAME, "untrained": True, "n": 8}
    ),
    "one without cls": lambda: of(
        {"n": 8, "blocks": 3},
        {"n": 8, "blocks": 2, "untrained": True},
        {"n": 8, "blocks": 3, "groups": ("reg", "patch"), "model": "vit_little_patch16_reg4_gap_256"},
    ),
    "none with cls": lambda: of(*({"n": 8, "blocks": 3, "groups": ("reg", "patch"), "seed": seed} for seed in (0, 1))),
    "one block, one image": lambda: of({"n": 1, "blocks": 1, "heads": 1}, {"n": 1, "blocks": 1, "heads": 1, "seed": 3}),
}


@cache
def subject(kind):
    return SUBJECTS[kind]()


@cache
def figure_of(kind, name, width="double") -> Figure | None:
    try:
        return draw(subject(kind), name, width=width)
    except NothingToDraw:
        return None


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_frame_and_plot_with_its_words(name):
    module = figures.module(name)
    assert module.OF == "comparison"
    assert module.TITLE
    assert module.CAPTION.endswith(".")
    frame = module.frame(subject("two"))
    assert isinstance(frame, pd.DataFrame)
    assert set(frame["n"].dropna()) == {16}
    labels = set().union(
        *(
            frame[column].dropna()
            for column in frame
            if column.startswith(("label", "baseline")) and frame[column].dtype.kind not in "iufb"
        )
    )
    assert labels == set(subject("two").labels)
    before, settings = frame.copy(), dict(matplotlib.rcParams)
    assert isinstance(module.plot(frame), Figure)
    pd.testing.assert_frame_equal(frame, before)
    assert dict(matplotlib.rcParams) == settings


def test_figures_know_what_they_are_of():
    assert {name for kind in KINDS for name in figures_of(kind)} == set(figures.names())
    assert NAMES[0] == "compare_summary"
    orders = [figures.module(name).ORDER for name in figures.names()]
    assert len(set(orders)) == len(orders)
    with pytest.raises(ValueError, match="the figure cka is of an analysis, and this is a comparison"):
        draw(subject("two"), "cka")
    with pytest.raises(ValueError, match="is of a comparison, and this is an analysis"):
        draw(synthetic_analysis(blocks=1), "compare_heads")
    with pytest.raises(ValueError, match="of an Analysis, a Comparison, a TrainedRun or a Verification, got str"):
        draw("runs/x", "cka")
    with pytest.raises(ValueError, match="got 'probe'"):
        figures_of("probe")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_it_says_models_and_n(name, width):
    text = texts(figure_of("two", name, width)).replace("\n", "")
    others = subject("two").labels if name != "compare_differences" else subject("two").others
    for label in others:
        assert label.replace(" ", "") in text.replace(" ", "")
    assert "(untrained)" in text
    assert "n = 16 images" in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", SUBJECTS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_overflows_whatever_the_models(name, kind, width):
    figure = figure_of(kind, name, width)
    if figure is None:
        assert kind in ("none with cls", "one block, one image") or (kind, name) == ("unpaired", "compare_similarity")
        return
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()
    across, high = figure.get_size_inches()
    assert across * 25.4 == pytest.approx(170 if width == "double" else 85)
    assert min(drawn.x0, drawn.y0) >= -0.02
    assert drawn.x1 <= across + 0.02
    assert drawn.y1 <= high + 0.02
    titles = [title.get_window_extent() for panel in figure.axes if (title := panel._left_title).get_text()]
    for index, box in enumerate(titles):
        assert box.count_overlaps(titles[index + 1 :]) == 0
    panels = [panel for panel in figure.axes if panel.get_label() != "<colorbar>" and panel.axison]
    assert all(panel.get_window_extent().height > 15 for panel in panels)
    assert all(panel.has_data() or panel.texts for panel in panels)
    assert smallest_text(figure) >= 5.5


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small_and_the_same_each_time(name, tmp_path):
    (svg,) = save_figure(figure_of("six of different depth", name), tmp_path, name, formats=["svg"])
    assert svg.stat().st_size <= 200_000
    (one,) = save_figure(figure_of("two", name), tmp_path, name, formats=["svg"])
    assert one.stat().st_size <= 100_000
    ElementTree.fromstring(one.read_text(encoding="utf-8"))


def test_models_have_colours_of_their_own():
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
    with pytest.raises(NothingToDraw, match="in units of a spread over images"):
        draw(subject("one block, one image"), "compare_differences")
    with pytest.raises(NothingToDraw, match=r"knn of fewer than two models: .*knn not computed"):
        draw(subject("two"), "compare_depth_profile", metric="knn")
    with pytest.raises(NothingToDraw, match=r"features can be compared: .*images"):
        draw(subject("unpaired"), "compare_similarity")


# Each figure's own


def test_profiles_overlay_on_relative_depth_and_stand_on_blocks_when_asked():
    figure = figure_of("six of different depth", "compare_depth_profile")
    x = np.concatenate([line.get_xdata() for line in figure.axes[0].lines if len(line.get_xdata()) > 2])
    assert ((x > 0) & (x < 1)).all()
    blocks = draw(subject("six of different depth"), "compare_depth_profile", axis="block")
    assert max(line.get_xdata().max() for line in blocks.axes[0].lines if len(line.get_xdata()) > 2) == 23
    with pytest.raises(ValueError, match="the axis is 'relative'"):
        draw(subject("two"), "compare_depth_profile", axis="depth")


def test_profiles_take_metrics_sites_and_blocks():
    frame = figures.module("compare_depth_profile").frame
    assert set(frame(subject("two"))["place"]) == {"before norm1", "after norm1", "before norm2", "after norm2"}
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
        for width in WIDTHS:
            draw(subject("two"), "compare_depth_profile", width=width, **options).draw_without_rendering()
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
    largest = frame.groupby("place").agg(effect=("effect", lambda x: x.abs().max()), sure=("significant", "max"))
    assert 5 <= len(largest) <= 18
    sure = largest[largest["sure"]]
    assert (largest["sure"].astype(int).diff().dropna() <= 0).all()
    assert (sure["effect"].diff().dropna() <= 1e-9).all()
    assert not frame.duplicated(["metric", "part", "group", "label"]).any()
    inside = frame[frame["effect_low"].notna()]
    assert (inside["effect_low"] <= inside["effect"]).all()
    assert (inside["effect"] <= inside["effect_high"]).all()
    few = figures.module("compare_differences").frame(subject("two"), count=3, metrics="token_norm")
    assert few["place"].nunique() <= 3
    assert set(few["metric"]) == {"token_norm"}


def test_heads_share_one_scale_for_each_quantity():
    figure = draw(subject("two"), "compare_heads", width="single", quantities=["cls-patch", "entropy"])
    limits = [panel.get_images()[0].get_clim() for panel in figure.axes if panel.get_images()]
    assert len(limits) == 4
    assert limits[0] == limits[1]
    assert limits[2] == limits[3]
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


def test_the_summary_leaves_out_what_is_not_there():
    frame = figures.module("compare_summary").frame(subject("unpaired"))
    assert set(frame["part_of_figure"]) == {"profile", "means"}
    assert "images" in texts(figure_of("unpaired", "compare_summary", "single"))
    with contextlib.suppress(NothingToDraw):
        assert "CLS–patch" not in texts(draw(subject("none with cls"), "compare_summary"))
