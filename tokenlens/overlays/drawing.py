"""Draw a photograph, a map over it and outlines of patches into matplotlib axes."""

# Shapes: h, w the patch grid; H, W pixels.

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from tokenlens.overlays.maps import photograph
from tokenlens.overlays.selection import check_image, covered_by
from tokenlens.recording.recording import Recording

OPACITY = 0.72
"""Opacity of a map over its photograph: colours stay close to the colour bar, and the photograph remains visible."""

Size = tuple[float, float]


def draw_pixels(panel: Axes, picture: NDArray[Any], size: Size, covered: Size, **options: Any) -> AxesImage:
    """Draw a picture over the upper left ``covered`` pixels of an image of (height, width), and hide the axes.

    A map covers the patch grid, which is smaller than the image where the model drops the rest of it; what a grid has
    beyond the image (padding) is cut off.
    """
    drawn = panel.imshow(picture, extent=(0, covered[1], covered[0], 0), interpolation="none", **options)
    panel.set_xlim(0, size[1])
    panel.set_ylim(size[0], 0)
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set_visible(False)
    return drawn


def draw_map(
    panel: Axes,
    map_hw: NDArray[Any],
    pixels_HW3: NDArray[Any],
    covered: Size,
    colours: str | None = None,
    limits: tuple[float, float] | None = None,
    opacity: float = OPACITY,
) -> AxesImage:
    """Draw a photograph in grey and a map over it.

    Args:
        panel: the axes to draw on.
        map_hw: values (h, w), or colours (h, w, 4), RGB in [0, 1] and opacity.
        pixels_HW3: the photograph, RGB in [0, 1].
        covered: height and width in pixels that the map covers.
        colours: name of a matplotlib colour map.
        limits: lowest and highest value of the colour scale.
        opacity: opacity of values, or of all colours.

    Returns:
        The drawn map.
    """
    height, width = size = (float(pixels_HW3.shape[0]), float(pixels_HW3.shape[1]))
    grey_HW = pixels_HW3 @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
    draw_pixels(panel, grey_HW, (height, width), (height, width), cmap="gray", vmin=0, vmax=1)
    if map_hw.ndim == 3:
        map_hw = np.concatenate([map_hw[..., :3], opacity * map_hw[..., 3:]], axis=-1)
        return draw_pixels(panel, map_hw, size, covered)
    low, high = limits or (float(map_hw.min()), float(map_hw.max()))
    return draw_pixels(panel, map_hw, size, covered, cmap=colours, vmin=low, vmax=high, alpha=opacity)


def outline(
    panel: Axes,
    patch: tuple[int, int],
    grid: tuple[int, int],
    covered: Size,
    colour: str = "#1b1b1f",
    line_width: float = 1.2,
) -> None:
    """Outline a patch, given as (row, column), in a colour on white."""
    height, width = covered[0] / grid[0], covered[1] / grid[1]
    corner = patch[1] * width, patch[0] * height
    for edge, thick in (("white", line_width + 1.4), (colour, line_width)):
        panel.add_patch(
            Rectangle(corner, width, height, fill=False, edgecolor=edge, linewidth=thick, clip_on=False, zorder=5)
        )


def draw_picture(panel: Axes, picture: NDArray[Any], recording: Recording, image: int, **options: Any) -> AxesImage:
    """Draw a photograph or a map of a recorded image over the pixels that it covers, and hide the axes."""
    check_image(recording, image)
    assert recording.images is not None
    size = (recording.images.shape[-2], recording.images.shape[-1])
    covered = covered_by(recording) if picture.shape[:2] == recording.layout.grid else size
    return draw_pixels(panel, picture, size, covered, **options)


def draw_overlay(
    panel: Axes, map_hw: NDArray[Any], recording: Recording, image: int, colours: str, limits: tuple[float, float]
) -> AxesImage:
    """Draw a recorded image in grey and a map over it, with the options of ``draw_map``."""
    return draw_map(panel, map_hw, photograph(recording, image), covered_by(recording), colours, limits)


def outline_patch(panel: Axes, recording: Recording, patch: tuple[int, int]) -> None:
    """Outline a patch of a recorded image, given as (row, column), in black on white."""
    outline(panel, patch, recording.layout.grid, covered_by(recording))
