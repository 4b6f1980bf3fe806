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
from tokenlens.overlays.selection import check_image
from tokenlens.recording.recording import Recording

OPACITY = 0.72
"""Opacity of a map over its photograph: colours stay close to the colour bar, and the photograph remains visible."""


def draw_picture(panel: Axes, picture: NDArray[Any], recording: Recording, image: int, **options: Any) -> AxesImage:
    """Draw a photograph or a map over the pixels that it covers, and hide the axes.

    A map covers the patch grid, which is smaller than the image where the model drops the rest of it; what a grid has
    beyond the image (padding) is cut off.
    """
    check_image(recording, image)
    assert recording.images is not None
    height, width = size = (recording.images.shape[-2], recording.images.shape[-1])
    bottom, right = recording.layout.extent(size) if picture.shape[:2] == recording.layout.grid else size
    drawn = panel.imshow(picture, extent=(0, right, bottom, 0), interpolation="none", **options)
    panel.set_xlim(0, width)
    panel.set_ylim(height, 0)
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set_visible(False)
    return drawn


def draw_overlay(
    panel: Axes, map_hw: NDArray[Any], recording: Recording, image: int, colours: str, limits: tuple[float, float]
) -> AxesImage:
    """Draw an image in grey and a map over it.

    Args:
        panel: the axes to draw on.
        map_hw: the map.
        recording: the recording with the image.
        image: index of the image.
        colours: name of a matplotlib colour map.
        limits: lowest and highest value of the colour scale.

    Returns:
        The drawn map.
    """
    grey_HW = photograph(recording, image) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
    draw_picture(panel, grey_HW, recording, image, cmap="gray", vmin=0, vmax=1)
    low, high = limits
    return draw_picture(panel, map_hw, recording, image, cmap=colours, vmin=low, vmax=high, alpha=OPACITY)


def outline_patch(panel: Axes, recording: Recording, patch: tuple[int, int]) -> None:
    """Outline a patch, given as (row, column), in black on white."""
    assert recording.images is not None
    rows, columns = recording.layout.grid
    bottom, right = recording.layout.extent((recording.images.shape[-2], recording.images.shape[-1]))
    height, width = bottom / rows, right / columns
    corner = patch[1] * width, patch[0] * height
    for colour, line_width in (("white", 2.6), ("#1b1b1f", 1.2)):
        panel.add_patch(
            Rectangle(
                corner, width, height, fill=False, edgecolor=colour, linewidth=line_width, clip_on=False, zorder=5
            )
        )
