"""Laws for all figures of an analysis or a comparison."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.support.figure_subjects import ANALYSES, COMPARISONS, figure_of, smallest_text, subject, texts
from tests.support.synthetic_analysis import synthetic_analysis
from tokenlens.figures import NothingToDraw, draw, figures, figures_of, save_figure
from tokenlens.figures.base import KINDS

NAMES = {"analysis": figures_of("analysis"), "comparison": figures_of("comparison")}
EVERY = [*NAMES["analysis"], *NAMES["comparison"]]
WITH_BLOCKS = [name for name in NAMES["analysis"] if "block" in figures.module(name).frame(subject("usual"))]

OF_WEIGHTS = ("weight_distance", "norm_weights")
"""Figures of specialized weights, which involve no images and are empty for standard models."""

EXTREMES = [
    *(("large and untrained", width) for width in ("double", "single")),
    *(("six of different depth", width) for width in ("double", "single")),
    ("long names, 40 blocks, 24 heads", "single"),
]
"""The models for which text is most likely to overflow."""


def names_for(kind):
    return NAMES["comparison" if kind in COMPARISONS else "analysis"]


@pytest.mark.parametrize("name", EVERY)
def test_a_figure_is_frame_and_plot_with_its_words(name):
    module = figures.module(name)
    assert module.TITLE
    assert module.CAPTION.endswith(".")
    assert figures.describe(name).endswith(".")
    result = subject("one block" if module.KIND == "analysis" else "two")
    frame = module.frame(result)
    assert isinstance(frame, pd.DataFrame)
    if module.KIND == "analysis":
        assert set(module.METRICS) <= set(subject("usual").table["metric"])
        assert set(frame["model"]) == {"vit_small_patch14_dinov2"}
        assert name in OF_WEIGHTS or set(frame["n"]) == {64}
    else:
        assert set(frame["n"].dropna()) == {16}
        named = [
            name for name in frame if name.startswith(("label", "baseline")) and frame[name].dtype.kind not in "iufb"
        ]
        assert set().union(*(frame[column].dropna() for column in named)) == set(result.labels)
    before, settings = frame.copy(), dict(matplotlib.rcParams)
    assert isinstance(module.plot(frame), Figure)
    pd.testing.assert_frame_equal(frame, before)
    assert dict(matplotlib.rcParams) == settings


def test_figures_are_for_one_kind_of_result():
    assert {name for kind in KINDS for name in figures_of(kind)} == set(figures.names())
    assert NAMES["comparison"][0] == "compare_summary"
    orders = [figures.module(name).ORDER for name in figures.names()]
    assert len(set(orders)) == len(orders)
    with pytest.raises(ValueError, match="the figure cka needs a result of kind 'analysis', got 'comparison'"):
        draw(subject("two"), "cka")
    for name, kind in (("compare_heads", "comparison"), ("emergence", "training")):
        with pytest.raises(ValueError, match=f"the figure {name} needs a result of kind '{kind}', got 'analysis'"):
            draw(subject("one block"), name)
    with pytest.raises(ValueError, match=r"expected a result \(analysis, comparison, .*\), got str"):
        draw("runs/x", "cka")
    with pytest.raises(ValueError, match="got 'model'"):
        figures_of("model")


@pytest.mark.parametrize("name", NAMES["analysis"])
def test_it_says_model_and_n(name):
    text = texts(figure_of("usual", name))
    assert "vit_small_patch14_dinov2" in text
    assert ("n = 64 images" in text) == (name not in OF_WEIGHTS)
    assert name not in OF_WEIGHTS or "image" not in text
    assert "untrained" not in text
    assert "(untrained)" in texts(figure_of("large and untrained", name))


@pytest.mark.parametrize("name", NAMES["comparison"])
def test_it_says_models_and_n(name):
    text = texts(figure_of("two", name)).replace("\n", "")
    for label in subject("two").others if name == "compare_differences" else subject("two").labels:
        assert label.replace(" ", "") in text.replace(" ", "")
    assert "(untrained)" in text
    assert "n = 16 images" in text


@pytest.mark.parametrize(("kind", "width", "name"), [(*case, name) for case in EXTREMES for name in names_for(case[0])])
def test_nothing_overflows(name, kind, width):
    figure = figure_of(kind, name, width)
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()
    across, height = figure.get_size_inches()
    assert across * 25.4 == pytest.approx(170 if width == "double" else 85)
    assert min(drawn.x0, drawn.y0) >= -0.02
    assert drawn.x1 <= across + 0.02
    assert drawn.y1 <= height + 0.02
    assert smallest_text(figure) >= 5.5
    titles = [title.get_window_extent() for panel in figure.axes if (title := panel._left_title).get_text()]
    for index, box in enumerate(titles):
        assert box.count_overlaps(titles[index + 1 :]) == 0
    panels = [panel for panel in figure.axes if panel.get_label() != "<colorbar>" and panel.axison]
    assert all(panel.get_window_extent().height > 15 for panel in panels)
    assert all(panel.has_data() or panel.texts for panel in panels)


@pytest.mark.parametrize("kind", sorted({*ANALYSES, *COMPARISONS} - {"usual", "two", *(kind for kind, _ in EXTREMES)}))
def test_other_models_are_drawn_unless_numbers_are_missing(kind):
    missing = {name for name in names_for(kind) if figure_of(kind, name, "single") is None}
    assert not missing or kind in (
        "no cls",
        "one image",
        "standard",
        "none with cls",
        "one block, one image",
        "unpaired",
    )
    if kind == "standard":
        assert missing == {"weight_distance"}
    if kind == "unpaired":
        assert missing == {"compare_similarity"}


@pytest.mark.parametrize("name", EVERY)
def test_files_are_small_and_hold_no_date(name, tmp_path):
    figure = figure_of("usual" if name in NAMES["analysis"] else "two", name)
    (svg,) = save_figure(figure, tmp_path, name, formats=["svg"])
    text = svg.read_text(encoding="utf-8")
    assert svg.stat().st_size <= (200_000 if "<image" in text else 60 * 1024 if name in NAMES["analysis"] else 100_000)
    ElementTree.fromstring(text)
    assert "<dc:date" not in text


@pytest.mark.parametrize("name", NAMES["analysis"])
def test_missing_numbers_are_named(name):
    analysis = synthetic_analysis(blocks=2, channels=8, heads=2, specialized=True)
    module = figures.module(name)
    analysis.table = analysis.table[analysis.table["metric"] == "effective_rank"]
    analysis.arrays = {}
    with pytest.raises(NothingToDraw, match="was not computed"):
        module.frame(analysis)
    analysis.not_applicable = dict.fromkeys([*module.METRICS, "cls_patch_cosine"], "the model has no [CLS] token")
    with pytest.raises(NothingToDraw, match=r"does not apply to .*: the model has no \[CLS\] token"):
        module.frame(analysis)


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_only_the_chosen_blocks_are_drawn(name):
    frames = []
    module = figures.module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "plot", lambda frame, **_: frames.append(frame))
        for blocks in ("2-4", [2, 3, 4], range(2, 5), slice(2, 5), "-10,3,4"):
            draw(subject("usual"), name, blocks=blocks)
        draw(subject("usual"), name, blocks=-1)
    assert all(set(frame["block"].astype(int)) == {2, 3, 4} for frame in frames[:-1])
    assert set(frames[-1]["block"].astype(int)) <= {11, 12}  # the final norm is numbered after the last block


@pytest.mark.parametrize("name", NAMES["analysis"])
def test_a_single_block_is_drawn(name):
    assert isinstance(draw(subject("usual"), name, blocks=[7], width="single"), Figure)


def test_drawing_needs_no_pyplot_and_tokenlens_no_matplotlib():
    code = (
        "import sys, tokenlens\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from tokenlens.figures import figures\n"
        "for name in figures.names(): figures.module(name)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
