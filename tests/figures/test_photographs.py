"""Maps of a recording drawn on its images: pictures, texts and errors."""

from __future__ import annotations

from functools import cache

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import tokenlens
from tests.support.tiny_models import KINDS, build, images
from tokenlens.figures import photographs as plot
from tokenlens.figures import save_figure
from tokenlens.overlays import maps, selection
from tokenlens.recording.recording import Recording

FUNCTIONS = (plot.attention_overlay, plot.cosine_to_patch, plot.pca_rgb, plot.norm_map)
KIND_NAMES = ("timm_dinov2_registers", "timm_vit_wide", "timm_siglip")


@cache
def recorded(kind: str = "timm_dinov2_registers") -> Recording:
    return tokenlens.record(
        build(kind), images(kind, 3), img_size=KINDS[kind].image_size, patterns=None, pretrained=False
    )


def texts(figure: Figure) -> str:
    """Return all text in a figure."""
    figure.draw_without_rendering()
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return "\n".join(text.replace("\n", " ") for text in found if text)


def pictures(axes: matplotlib.axes.Axes) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for image in axes.get_images()]


def token_for(kind: str) -> selection.Token:
    return "cls" if "cls" in KINDS[kind].prefix else (1, 2)


@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_kind_of_model_is_drawn(function, kind):
    options = {plot.attention_overlay: "query", plot.cosine_to_patch: "token"}
    given = {options[function]: token_for(kind)} if function in options else {}
    figure = function(recorded(kind), image=1, **given)
    photo, drawing = figure.axes[:2]
    np.testing.assert_allclose(pictures(photo)[0], maps.photograph(recorded(kind), 1))
    assert pictures(drawing)[-1].shape[:2] == recorded(kind).layout.grid
    height, width = KINDS[kind].image_size
    for panel in (photo, drawing):  # both lie on the image's pixels
        assert {tuple(image.get_extent()) for image in panel.get_images()} == {(0, width, height, 0)}
    said = texts(figure)
    assert f"{recorded(kind).model} (untrained)" in said
    assert "block 1" in said
    assert "image 1" in said


def test_attention_is_in_units_of_uniform_attention():
    recording = recorded()
    figure = plot.attention_overlay(recording, image=2, block=0, query="reg3", head=1)
    row_T = selection.attention_of(recording, 2, 0, "reg3", 1)
    np.testing.assert_array_equal(pictures(figure.axes[1])[-1], maps.attention_map(row_T, recording.layout))
    said = texts(figure)
    for part in ("attention of register 3", "× uniform", "head 1", "block 0"):
        assert part in said
    for group, share in maps.attention_shares(row_T, recording.layout).items():
        assert f"{100 * share:.1f} % to {selection.group_plural(group)}" in said
    assert "mean over heads" in texts(plot.attention_overlay(recording))


@pytest.mark.parametrize("token", ["cls", (2, 1)])
def test_cosines_are_even_around_zero_and_the_token_itself_sets_no_scale(token):
    recording = recorded()
    figure = plot.cosine_to_patch(recording, site="norm1", token=token)
    image = figure.axes[1].get_images()[-1]
    values = np.asarray(image.get_array())
    np.testing.assert_array_equal(
        values, maps.cosine_map(selection.tokens_at(recording, 0, 1, "norm1"), recording.layout, token)
    )
    low, high = image.get_clim()
    assert low == -high
    others = np.abs(values[np.ones_like(values, dtype=bool) if token == "cls" else np.arange(16).reshape(4, 4) != 9])
    assert high == pytest.approx(others.max())
    assert "norm1" in texts(figure)
    assert len([p for p in figure.axes[1].patches if p.get_width() == 8]) == (0 if token == "cls" else 2)


def test_high_norm_tokens_are_outlined():
    recording = Recording(**{**vars(recorded()), "tensors": {(1, "resid_post"): recorded()[1, "resid_post"].clone()}})
    x_TD = recording[1, "resid_post"][0]
    patches_PD = x_TD[recording.layout.patch_slice]
    x_TD[recording.layout.patch_slice] = patches_PD / patches_PD.norm(dim=-1, keepdim=True)
    x_TD[recording.layout.patch_slice.start + 6] *= 40
    figure = plot.norm_map(recording)
    said = texts(figure)
    assert "1 of 16 patches outlined (high norm): ‖x‖ > 3 × median = 3" in said
    assert "maximum 40" in said
    assert "[CLS] " in said
    assert "register 3" in said
    corners = {patch.get_xy() for patch in figure.axes[1].patches if patch.get_width() == 8}
    assert corners == {(16.0, 8.0)}
    assert figure.axes[1].get_images()[-1].get_clim() == pytest.approx((1, 5), rel=1e-5)


def test_components_are_taken_over_one_image_or_all():
    recording = recorded()
    patches_NPD = recording.layout.patches_of(recording[1, "norm2"].float())
    alone = plot.pca_rgb(recording, image=1, site="norm2")
    components = maps.principal_components(patches_NPD[1:2])
    np.testing.assert_allclose(pictures(alone.axes[1])[0].reshape(16, 3), maps.as_rgb(components.scores_NPC)[0])
    assert "components over this image" in texts(alone)
    together = plot.pca_rgb(recording, image=None, site="norm2")
    components = maps.principal_components(patches_NPD)
    rgb_NP3 = maps.as_rgb(components.scores_NPC)
    drawn = [panel for panel in together.axes if pictures(panel)[0].shape == (4, 4, 3)]
    np.testing.assert_allclose(np.stack([pictures(panel)[0].reshape(16, 3) for panel in drawn]), rgb_NP3)
    said = texts(together)
    red, green, blue = (f"{100 * share:.0f} %" for share in components.explained_C)
    assert f"components over 3 images · of the variance: red {red}, green {green}, blue {blue}" in said
    assert all(f"image {index}" in said for index in range(3))


def test_heads_are_channels_of_the_components():
    assert "all heads" in texts(plot.pca_rgb(recorded(), site="q"))
    assert "head 1" in texts(plot.pca_rgb(recorded(), site="q", head=1))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_axes_of_the_caller(function):
    figure = Figure()
    mine = figure.subplots()
    assert function(recorded(), image=2, ax=mine) is figure
    assert pictures(mine)[-1].shape[:2] == (4, 4)
    assert "image 2" in texts(figure).replace("\n", " ")
    with pytest.raises(ValueError, match=r"1 panels \(1 × 1\), got 2 axes"):
        function(recorded(), ax=Figure().subplots(1, 2))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_sizes_files_and_global_settings(function, tmp_path):
    before = {name: value for name, value in matplotlib.rcParams.copy().items() if name != "backend"}
    figure = function(recorded("timm_vit_wide"), width="single")
    assert figure.get_figwidth() * 25.4 == pytest.approx(85)
    assert {path.suffix for path in save_figure(figure, tmp_path, "drawn")} == {".svg", ".png"}
    assert {name: matplotlib.rcParams[name] for name in before} == before


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda r: plot.attention_overlay(r), "no token 'cls'; it has no prefix token and patches"),
        (lambda r: plot.cosine_to_patch(r, token=(4, 0)), r"row 0 to 3 and column 0 to 3, got \(4, 0\)"),
        (lambda r: plot.norm_map(r, block=2), "there is no block 2: recorded, and counted from 0, are 0 to 1"),
        (lambda r: plot.norm_map(r, site="pattern"), "unknown site 'pattern'; sites are"),
        (lambda r: plot.pca_rgb(r, image=3), "images 0 to 2, got 3"),
        (lambda r: plot.attention_overlay(r, query=(0, 0), head=2), "heads 0 to 1, got 2"),
        (lambda r: plot.norm_map(r, site="norm1", head=0), "heads at q, k and v only"),
    ],
)
def test_what_is_not_there_is_named(call, text):
    with pytest.raises(LookupError, match=text):
        call(recorded("timm_siglip"))


def test_it_is_a_public_name():
    assert tokenlens.plot is plot
    assert {"plot", "explore"} <= set(tokenlens.__all__)


@pytest.mark.parametrize("kind", ["dinov3_hub", "timm_vit_padded"])
def test_a_map_covers_the_pixels_of_its_patches(kind):
    recording = recorded(kind)
    (height, width), (rows, columns) = KINDS[kind].image_size, recording.layout.grid
    figure = plot.cosine_to_patch(recording, token=(1, 2))
    photo, drawing = figure.axes[:2]
    assert [tuple(image.get_extent()) for image in photo.get_images()] == [(0, width, height, 0)]
    grey, drawn = (tuple(image.get_extent()) for image in drawing.get_images())
    assert grey == (0, width, height, 0)
    assert drawn == (0, 8 * columns, 8 * rows, 0) != grey
    for panel in (photo, drawing):
        assert (panel.get_xlim(), panel.get_ylim()) == ((0, width), (height, 0))
        assert {patch.get_bbox().bounds for patch in panel.patches} == {(16, 8, 8, 8)}
    assert f"{rows}×{columns} patches of 8×8 pixels cover {8 * rows}×{8 * columns} of {height}×{width}" in texts(figure)
