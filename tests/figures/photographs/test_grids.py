"""Maps in rows and columns are drawn on one scale, with their means, at any width."""

from __future__ import annotations

from functools import cache
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.patches import ConnectionPatch, Rectangle

import tokenlens
from tests.support.tiny_models import KINDS, build, images
from tokenlens import plot
from tokenlens.overlays.before_after import before_after_maps
from tokenlens.overlays.block_maps import norm_maps
from tokenlens.overlays.map_grid import shared_limits
from tokenlens.recording.recording import Recording


@cache
def recorded(kind: str = "timm_dinov2_registers") -> Recording:
    return tokenlens.record(build(kind), images(kind), img_size=KINDS[kind].image_size, pretrained=False)


def texts(figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text().replace("\n", " ") for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def maps_in(figure, shape: tuple[int, ...]) -> list:
    found = [image for panel in figure.axes for image in panel.get_images()]
    return [image for image in found if image.get_array().shape == shape]


def test_a_notebook_shows_photographs_as_a_small_jpeg():
    figure: Any = plot.before_after(recorded())
    assert figure._repr_svg_() is None
    jpeg = figure._repr_jpeg_()
    assert jpeg.startswith(b"\xff\xd8")
    assert len(jpeg) < 100_000


def test_before_and_after_are_drawn_on_one_scale_with_their_means():
    recording = recorded()
    figure = plot.before_after(recording, image=None)
    grids = [before_after_maps(recording, index) for index in (0, 1)]
    drawn = maps_in(figure, (4, 4))
    expected = np.concatenate([grid.maps for grid in grids])
    np.testing.assert_array_equal(np.stack([np.asarray(image.get_array()) for image in drawn]), expected)
    assert {image.get_clim() for image in drawn} == {shared_limits(grids)}
    assert {image.get_alpha() for image in drawn} == {1}, "the colours are those of the bar"
    said = texts(figure)
    for text in ("before norm1", "after norm1", "block 0", "block 1", "cosine to [CLS]", *recording.names):
        assert text in said
    for grid in grids:
        assert set(grid.captions) <= set(said)


def test_limits_can_be_those_of_other_figures():
    figure = plot.before_after(recorded(), limits=(-0.01, 0.01))
    assert {image.get_clim() for image in maps_in(figure, (4, 4))} == {(-0.01, 0.01)}
    said = texts(figure)
    assert "≥ 0.01" in said
    assert any(text.startswith("cosine to [CLS] (largest ") for text in said)


@pytest.mark.parametrize("kind", ["timm_dinov2_registers", "timm_vit_wide"])
@pytest.mark.parametrize("name", ["cosine_strip", "norm_strip", "pca_strip", "all_heads"])
@pytest.mark.parametrize("width", ["single", "double"])
def test_no_text_lies_on_another(kind, name, width):
    figure = getattr(plot, name)(recorded(kind), width=width)
    figure.draw_without_rendering()
    labels = [panel.xaxis.label for panel in figure.axes] + [panel.title for panel in figure.axes]
    labels += [panel._left_title for panel in figure.axes]
    boxes = [label.get_window_extent().shrunk(0.98, 0.9) for label in labels if label.get_text()]
    width_px, height_px = figure.get_size_inches() * figure.dpi
    for index, box in enumerate(boxes):
        assert box.x0 > -1
        assert box.x1 < width_px + 1
        assert box.y0 > -1
        assert box.y1 < height_px + 1
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_high_norm_patches_are_outlined():
    recording = recorded()
    tensors = {(1, "resid_post"): recording[1, "resid_post"].clone()}
    tensors[1, "resid_post"][0, recording.layout.patch_positions[6]] *= 100
    figure = plot.norm_strip(Recording(**{**vars(recording), "tensors": tensors}))
    outlines = [patch for panel in figure.axes for patch in panel.patches if isinstance(patch, Rectangle)]
    corners = {patch.get_xy() for patch in outlines if patch.get_width() == 8}
    assert corners == {(16.0, 8.0)}


def test_the_background_of_components_shows_the_photograph():
    drawn = maps_in(plot.pca_strip(recorded()), (4, 4, 4))
    assert len(drawn) == 2
    alpha = np.asarray(drawn[0].get_array())[..., 3]
    assert set(np.unique(alpha)) == {0.0, 1.0}


def test_maps_of_different_quantities_are_refused():
    with pytest.raises(ValueError, match=r"one quantity, which share a scale, got cosine to \[CLS\], ‖x‖"):
        plot.draw_maps([before_after_maps(recorded()), norm_maps(recorded())])
    with pytest.raises(ValueError, match="got none"):
        plot.draw_maps([])


def test_correspondences_are_joined_by_lines():
    figure = plot.correspondence(recorded(), (1, 2))
    said = texts(figure)
    assert "patch (1, 2)" in said
    assert "cosine to patch (1, 2)" in said
    assert any(": cosine " in text for text in said)
    several = plot.correspondence(recorded(), [(0, 0), (3, 3)], image=1)
    lines = [artist for artist in several.artists if isinstance(artist, ConnectionPatch)]
    assert len(lines) == 2 * 2  # a white line below each
    assert any("patch (0, 0) patch (3, 3)" in text for text in texts(several))
