"""The figure of a training shows the diagnostics and is legible for any depth and length of training."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.support.figure_subjects import smallest_text, texts
from tests.support.synthetic_training import trained
from tokenlens.figures import NothingToDraw, draw, figures, figures_of, save_figure
from tokenlens.figures.style import COLOURS
from tokenlens.storage.tables import select_rows

SUBJECTS = {
    "usual": {},
    "one block, one step": {"blocks": 1, "steps": (0,)},
    "long": {
        "blocks": 24,
        "steps": tuple(range(0, 625_000, 2500)),
        "specialization": "paper",
        "model": "vit_large_patch14_dinov2",
        "model_options": {"img_size": 224, "drop_path_rate": 0.3},
    },
    "stopped": {"steps": (0, 50, 100), "state": "stopped"},
}


def test_it_is_of_a_training():
    assert figures_of("training") == ["emergence"]
    assert figures.module("emergence").CAPTION.endswith(".")


def test_the_frame_holds_the_diagnostics_as_they_are():
    run = trained(blocks=3, steps=(0, 50))
    frame = figures.module("emergence").frame(run)
    assert dict(frame.groupby("quantity").size()) == {"fall": 6, "cosine": 6, "norm": 4}
    assert (frame["value"] < 20).all()
    assert set(frame[frame["quantity"] == "norm"]["block"]) == {2}
    diagnostics = run.diagnostics
    for quantity, metric, site in (
        ("fall", "norm_differentiation", "norm1"),
        ("cosine", "cls_patch_cosine", "resid_post"),
    ):
        mine = frame[frame["quantity"] == quantity].set_index(["step", "block"])["value"]
        chosen = select_rows(diagnostics, metric=metric, site=site, group="cls-patch", part=["total", ""])
        chosen = chosen.set_index(["step", "block"])["value"]
        pd.testing.assert_series_equal(mine.sort_index(), chosen.sort_index())
    assert set(frame["n"]) == {32}


@pytest.mark.parametrize(("kind", "width"), [*((kind, "single") for kind in SUBJECTS), ("long", "double")])
def test_it_says_whose_training_it_is_and_can_be_read(kind, width, tmp_path):
    run, settings = trained(**SUBJECTS[kind]), dict(matplotlib.rcParams)
    figure = draw(run, "emergence", width=width)
    assert isinstance(figure, Figure)
    said = " ".join(texts(figure).split())
    for part in (run.recipe.model, "n = 32 images", "recipe tiny_dino, seed 3", "95 % interval"):
        assert part.replace(" ", "") in said.replace(" ", "")
    assert ("specialized (paper)" in said) == (run.recipe.specialization == "paper")
    assert ("stopped at step 100 of 2000" in said) == (run.state == "stopped")
    assert "thousands" in said if kind == "long" else "thousands" not in said
    assert smallest_text(figure) >= 5.5
    for path in save_figure(figure, tmp_path, "emergence"):
        assert 3_000 < path.stat().st_size < 400_000
    assert dict(matplotlib.rcParams) == settings


def test_the_heat_map_shows_what_was_seen_at_the_nearest_step():
    run = trained(blocks=4, steps=(0, 100, 200, 250))
    figure = draw(run, "emergence")
    (image,) = figure.axes[0].get_images()
    shown, frame = np.asarray(image.get_array()), figures.module("emergence").frame(run)
    fall = frame[frame["quantity"] == "fall"].pivot(index="block", columns="step", values="value")
    left, right, bottom, top = image.get_extent()
    assert (bottom, top) == (3.5, -0.5)
    width = (right - left) / shown.shape[1]
    for column in range(shown.shape[1]):
        at = left + (column + 0.5) * width
        nearest = min(fall.columns, key=lambda step: abs(step - at))
        np.testing.assert_array_equal(shown[:, column], fall[nearest])
    low, high = image.get_clim()
    assert low == -high  # white is no fall


def test_groups_have_their_colours_and_intervals():
    figure = draw(trained(blocks=2), "emergence")
    panel = next(axes for axes in figure.axes if "token norm" in axes.get_title(loc="left").replace("\n", " "))
    assert {line.get_label(): line.get_color() for line in panel.get_lines()} == {
        "CLS": COLOURS["cls"],
        "patches": COLOURS["patch"],
    }
    assert len(panel.collections) == 2


def test_blocks_can_be_chosen():
    figure = draw(trained(blocks=6), "emergence", blocks="0,5")
    (image,) = figure.axes[0].get_images()
    assert image.get_array().shape[0] == 2
    with pytest.raises(NothingToDraw, match="vit_tiny_patch16_224 has 0 to 5"):
        draw(trained(blocks=6), "emergence", blocks="9")


def test_what_cannot_be_drawn_is_said():
    run = trained(diagnose_every=0)
    run.rows[0] = run.rows[0].iloc[:0]
    with pytest.raises(NothingToDraw, match=r"no diagnostics in runs/tiny_dino_seed3.*--set diagnose_every"):
        draw(run, "emergence")
    only = figures.module("emergence").frame(trained(groups=("patch",)))
    assert set(only["quantity"]) == {"norm"}
    assert isinstance(draw(trained(groups=("patch",)), "emergence"), Figure)
