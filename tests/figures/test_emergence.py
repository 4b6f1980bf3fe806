"""The figure of a training: its numbers are the diagnostics', and it can be read at any depth and length."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.figures.test_figures import smallest_text, texts
from tests.support.synthetic_analysis import synthetic_analysis
from tokenlens.figures.base import NothingToDraw, draw, figures, figures_of, kind_of, save_figure
from tokenlens.figures.style import COLOURS
from tokenlens.training.recipe import Recipe


def trained(
    *,
    blocks=6,
    steps=(*range(0, 2000, 50), 1999),
    n=32,
    groups=("cls", "patch"),
    model="vit_tiny_patch16_224",
    specialization=None,
    state="finished",
    name="tiny_dino",
    **settings,
):
    """What a training leaves behind, as a figure sees it: the norm before attention learns to part CLS and patches."""
    recipe = Recipe(
        objective="dino",
        model=model,
        specialization=specialization,
        steps=2000,
        **{"diagnose_every": 50, "seed": 3} | settings,
    )
    rng, rows = np.random.default_rng(0), []
    for step in steps:
        learned = 1 - np.exp(-step / max(max(steps) / 4, 1))
        for block in range(blocks):
            depth = block / max(blocks - 1, 1)
            values = [
                ("norm_differentiation", "total", "norm1", "cls-patch", 0.5 * depth * learned - 0.05 * (1 - depth)),
                ("norm_differentiation", "gamma", "norm1", "cls-patch", 9.0),
                ("norm_differentiation", "total", "norm1", "patch-patch", 9.0),
                ("cls_patch_cosine", "", "resid_post", "cls-patch", 0.6 - (0.2 + 0.7 * depth) * learned),
                ("cls_patch_cosine", "", "norm1", "cls-patch", 9.0),
                ("token_norm", "mean", "resid_post", "cls", 3 + 9 * learned + block),
                ("token_norm", "mean", "resid_post", "patch", 3 + 4 * learned + block),
                ("token_norm", "max_over_median", "resid_post", "patch", 9.0),
            ]
            for metric, part, site, group, value in values:
                if not set(group.split("-")) <= set(groups):
                    continue
                value += rng.normal(0, 0.01)
                rows.append(
                    {
                        "step": step,
                        "model": "VisionTransformer",
                        "metric": metric,
                        "part": part,
                        "block": block,
                        "site": site,
                        "group": group,
                        "head": pd.NA,
                        "value": value,
                        "sd": 0.1,
                        "n": n,
                        "ci_low": value - 0.03,
                        "ci_high": value + 0.03,
                        "unit": "cosine",
                    }
                )
    return SimpleNamespace(
        path=Path("runs/tiny_dino_seed3"),
        recipe=recipe,
        state=state,
        finished=state == "finished",
        step=max(steps),
        diagnostics=pd.DataFrame(rows),
        settings={"name": name, "steps": 2000},
    )


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
    module = figures.module("emergence")
    assert kind_of("emergence") == "training"
    assert figures_of("training") == ["emergence"]
    assert module.TITLE
    assert module.CAPTION.endswith(".")
    with pytest.raises(ValueError, match="the figure emergence is of a training, and this is an analysis"):
        draw(synthetic_analysis(blocks=1), "emergence")
    with pytest.raises(ValueError, match="the figure cka is of an analysis, and this is a training"):
        draw(trained(blocks=1), "cka")


def test_the_frame_holds_the_diagnostics_as_they_are():
    run = trained(blocks=3, steps=(0, 50))
    frame = figures.module("emergence").frame(run)
    assert dict(frame.groupby("quantity").size()) == {"fall": 6, "cosine": 6, "norm": 4}
    assert (frame["value"] < 20).all()
    assert set(frame[frame["quantity"] == "norm"]["block"]) == {2}
    told = run.diagnostics
    for quantity, metric, site in (
        ("fall", "norm_differentiation", "norm1"),
        ("cosine", "cls_patch_cosine", "resid_post"),
    ):
        mine = frame[frame["quantity"] == quantity].set_index(["step", "block"])["value"]
        chosen = told[(told["metric"] == metric) & (told["site"] == site) & (told["group"] == "cls-patch")]
        chosen = chosen[chosen["part"].isin(["total", ""])].set_index(["step", "block"])["value"]
        pd.testing.assert_series_equal(mine.sort_index(), chosen.sort_index())
    assert set(frame["n"]) == {32}


@pytest.mark.parametrize("width", ["double", "single"])
@pytest.mark.parametrize("kind", SUBJECTS)
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
    run.diagnostics = run.diagnostics.iloc[:0]
    with pytest.raises(NothingToDraw, match=r"nothing was diagnosed in runs/tiny_dino_seed3.*--set diagnose_every"):
        draw(run, "emergence")
    only = figures.module("emergence").frame(trained(groups=("patch",)))
    assert set(only["quantity"]) == {"norm"}
    assert isinstance(draw(trained(groups=("patch",)), "emergence"), Figure)
