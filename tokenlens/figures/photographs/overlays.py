"""Maps of a recording on its images: attention, cosine to one token, principal components and norms of the patches.

>>> import tokenlens
>>> recording = tokenlens.record("vit_tiny_patch16_224", pretrained=False)  # doctest: +SKIP
>>> tokenlens.plot.attention_overlay(recording, image=1, block=-1, query=(4, 9))  # doctest: +SKIP

Each function draws the photograph as the model saw it, with the normalization undone, beside the map; with ``ax`` it
draws only the map. Pixels that the model drops are not covered by the map. Like all figures, they accept ``width``
("single", "double" or mm), ``height`` (mm) and ``style``, too.
"""

# Shapes: h, w the patch grid.

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tokenlens.figures._panels import colour_bar
from tokenlens.figures.page import Canvas, canvas, paper, styled
from tokenlens.figures.style import DIVERGING, SEQUENTIAL, plain_number
from tokenlens.metrics.token_norm import HIGH_NORM_RATIO
from tokenlens.overlays.components import stack_patches
from tokenlens.overlays.drawing import draw_overlay, draw_picture, outline_patch
from tokenlens.overlays.maps import (
    as_rgb,
    attention_map,
    attention_shares,
    cosine_map,
    photograph,
    principal_components,
)
from tokenlens.overlays.maps import norm_map as norms_of
from tokenlens.overlays.selection import (
    Token,
    attention_of,
    block_of,
    group_plural,
    head_text,
    image_count,
    image_title,
    layout_at,
    model_title,
    site_text,
    token_title,
    tokens_at,
)
from tokenlens.recording.recording import Recording
from tokenlens.tokens import Site


@styled
def attention_overlay(
    recording: Recording,
    image: int = 0,
    block: int = -1,
    query: Token = "cls",
    head: int | None = None,
    ax: Any = None,
) -> Figure:
    """Draw the attention of one token to each patch, divided by its mean over patches (1 = uniform, at least 0).

    Attention to CLS and registers is not part of the map; the header lists the shares of all groups.

    Args:
        recording: a recording with q and k, or with patterns.
        image: index of the image.
        block: the block; negative numbers count from the last recorded one.
        query: the querying token: ``"cls"``, ``"dist"``, ``"reg0"``, … or a patch (row, column).
        head: one head; None for the mean over heads.
        ax: one Axes for the map alone; by default a new figure with the photograph beside it.

    Raises:
        LookupError: if the recording lacks the image, block, head or token, or its attention.
        ValueError: for more than one Axes.
    """
    row_T = attention_of(recording, image, block, query, head)
    layout = layout_at(recording, block)
    map_hw = attention_map(row_T, layout)
    page, panel = _page(recording, image, ax, query)
    high = max(float(np.quantile(map_hw, 0.995)), 1.5)
    drawn = draw_overlay(panel, map_hw, recording, image, SEQUENTIAL, (0, high))
    _outline(panel, recording, query)
    panel.set_title(f"attention of {token_title(query)}")
    largest = float(map_hw.max())
    clipped = largest > high * 1.0001
    _bar(page, drawn, panel, "× uniform", clipped=clipped)
    shares = attention_shares(row_T, layout).items()
    to = ", ".join(f"{100 * share:.1f} % to {group_plural(group)}" for group, share in shares)
    most = f"maximum {largest:.1f} × uniform" if clipped else ""
    _header(page, recording, image, f"block {block_of(recording, block)}", head_text(Site.Q, head), to, most)
    return page.figure


@styled
def cosine_to_patch(
    recording: Recording,
    image: int = 0,
    block: int = -1,
    site: str = Site.RESID_POST,
    token: Token = "cls",
    head: int | None = None,
    ax: Any = None,
) -> Figure:
    """Draw the cosine of one token to each patch, in [−1, 1].

    The colour scale is symmetric around 0 and ends at the largest absolute cosine with another patch.

    Args:
        recording: a recording with the site.
        image: index of the image.
        block: the block; negative numbers count from the last recorded one. Ignored at ``final_norm``.
        site: the site of the tokens.
        token: ``"cls"``, ``"dist"``, ``"reg0"``, … or a patch (row, column).
        head: one head at q, k and v; None for the mean of the heads' cosines.
        ax: one Axes for the map alone; by default a new figure with the photograph beside it.

    Raises:
        LookupError: if the recording lacks the image, block, site, head or token.
        ValueError: for more than one Axes.
    """
    layout = layout_at(recording, block, site)
    x_XTD = tokens_at(recording, image, block, site, head)
    map_hw = cosine_map(x_XTD, layout, token)
    others = np.abs(map_hw)
    if not isinstance(token, str):
        others[token] = 0
    high = max(float(others.max()), 0.01)
    page, panel = _page(recording, image, ax, token)
    drawn = draw_overlay(panel, map_hw, recording, image, DIVERGING, (-high, high))
    _outline(panel, recording, token)
    panel.set_title(f"cosine to {token_title(token)}")
    _bar(page, drawn, panel, "cosine", clipped=float(map_hw.max()) > high * 1.0001)
    _header(page, recording, image, site_text(recording, block, site), head_text(site, head))
    return page.figure


@styled
def pca_rgb(
    recording: Recording,
    image: int | None = 0,
    block: int = -1,
    site: str = Site.RESID_POST,
    head: int | None = None,
    ax: Any = None,
) -> Figure:
    """Draw the first three principal components of the patch features as red, green and blue.

    Each component is scaled from its 1st to its 99th percentile. Its sign is chosen so that the channel with the
    largest weight has a positive one, which makes the colours reproducible. The header lists each component's share of
    the variance. CLS and registers are not used.

    Args:
        recording: a recording with the site.
        image: index of the image; None for all images, with components computed over all of them together, so that
            colours are comparable.
        block: the block; negative numbers count from the last recorded one. Ignored at ``final_norm``.
        site: the site of the patches.
        head: one head at q, k and v; None for the channels of all heads together.
        ax: one Axes per map, without photographs; by default a new figure with the photographs above the maps.

    Raises:
        LookupError: if the recording lacks the image, block, site or head.
        ValueError: if the number of Axes is not the number of images.
    """
    count = image_count(recording)
    chosen = range(count) if image is None else [image]
    components = principal_components(stack_patches(recording, chosen, block, site, head))
    rgb_Nhw3 = as_rgb(components.scores_NPC).reshape(len(chosen), *recording.layout.grid, 3)
    page, maps = _gallery(recording, list(chosen), ax)
    for panel, index, rgb_hw3 in zip(maps, chosen, rgb_Nhw3, strict=True):
        draw_picture(panel, rgb_hw3, recording, index)
        if len(chosen) > 1 and not page.new:
            panel.set_title(image_title(recording, index))
    over = f"components over {count} images" if image is None and count > 1 else "components over this image"
    shares = ", ".join(
        f"{colour} {100 * share:.0f} %"
        for colour, share in zip(("red", "green", "blue"), components.explained_C, strict=True)
    )
    heads = head_text(site, head, "all heads")
    notes = (site_text(recording, block, site), heads, over, f"of the variance: {shares}")
    _header(page, recording, image, *notes)
    return page.figure


@styled
def norm_map(
    recording: Recording,
    image: int = 0,
    block: int = -1,
    site: str = Site.RESID_POST,
    head: int | None = None,
    ax: Any = None,
) -> Figure:
    """Draw the norm ‖x‖ of each patch, with high-norm patches outlined.

    A high-norm patch exceeds 3 × the median patch norm of its image, as in the metric ``token_norm``. The colour scale
    ends at 5 × the median. The header lists the norms of CLS and registers.

    Args:
        recording: a recording with the site.
        image: index of the image.
        block: the block; negative numbers count from the last recorded one. Ignored at ``final_norm``.
        site: the site of the tokens.
        head: one head at q, k and v; None for the mean of the heads' norms.
        ax: one Axes for the map alone; by default a new figure with the photograph beside it.

    Raises:
        LookupError: if the recording lacks the image, block, site or head.
        ValueError: for more than one Axes.
    """
    found = norms_of(tokens_at(recording, image, block, site, head), layout_at(recording, block, site))
    longest = float(found.norms_hw.max())
    high = min(longest, 5 / HIGH_NORM_RATIO * found.threshold)
    page, panel = _page(recording, image, ax)
    drawn = draw_overlay(panel, found.norms_hw, recording, image, SEQUENTIAL, (float(found.norms_hw.min()), high))
    for row, column in np.argwhere(found.high_hw):
        outline_patch(panel, recording, (int(row), int(column)))
    panel.set_title("norm of the patches")
    _bar(page, drawn, panel, "‖x‖", clipped=longest > high * 1.0001)
    count = int(found.high_hw.sum())
    notes = [
        f"{count} of {found.high_hw.size} patches outlined (high norm): ‖x‖ > {HIGH_NORM_RATIO:g} × median = "
        f"{_three_digits(found.threshold)}",
        f"maximum {_three_digits(longest)}",
        ", ".join(f"{token_title(name)} {_three_digits(x)}" for name, x in found.prefix.items()),
        head_text(site, head),
    ]
    _header(page, recording, image, site_text(recording, block, site), *notes)
    return page.figure


# -- panels


def _page(recording: Recording, image: int, ax: Any, token: Token | None = None) -> tuple[Canvas, Axes]:
    """Create a figure with the photograph on the left; return it with the axes of the map."""
    if ax is not None:
        page = canvas(ax, 1, 1, 0)
        return page, page.axes[0, 0]
    page = canvas(None, 1, 2, _height_mm(recording, 0.45 * paper().width) + 12)
    left, right = page.axes[0]
    draw_picture(left, photograph(recording, image), recording, image)
    left.set_title(image_title(recording, image))
    if token is not None:
        _outline(left, recording, token)
    return page, right


def _gallery(recording: Recording, images: list[int], ax: Any) -> tuple[Canvas, list[Axes]]:
    """Create a figure with photographs above the axes of their maps, or beside it for a single image."""
    if ax is not None:
        page = canvas(ax, 1, len(images), 0)
        return page, list(page.axes.flat)
    if len(images) == 1:
        page, panel = _page(recording, images[0], None)
        panel.set_title("principal components")
        return page, [panel]
    columns = min(len(images), 3 if paper().narrow else 6)
    rows = 2 * -(-len(images) // columns)
    page = canvas(None, rows, columns, rows * _height_mm(recording, 0.97 * paper().width / columns) + 4 * rows + 8)
    maps = []
    for number in range(rows // 2 * columns):
        above, below = page.axes[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        if number >= len(images):
            above.remove()
            below.remove()
            continue
        draw_picture(above, photograph(recording, images[number]), recording, images[number])
        above.set_title(image_title(recording, images[number]), fontsize=7, fontweight="normal")
        maps.append(below)
    return page, maps


def _height_mm(recording: Recording, width_mm: float) -> float:
    assert recording.images is not None
    height, width = recording.images.shape[-2:]
    return width_mm * min(height / width, 3.0)


def _outline(panel: Axes, recording: Recording, token: Token) -> None:
    """Outline the token if it is a patch."""
    if not isinstance(token, str):
        outline_patch(panel, recording, token)


def _bar(page: Canvas, drawn: AxesImage, panel: Axes, label: str, clipped: bool) -> None:
    colour_bar(page.figure, drawn, panel, label, extend="max" if clipped else "neither", fraction=0.046, pad=0.03)


def _header(page: Canvas, recording: Recording, image: int | None, *notes: str) -> None:
    shown = "" if image is None or page.new else image_title(recording, image)
    assert recording.images is not None
    border = recording.layout.border_note((recording.images.shape[-2], recording.images.shape[-1]))
    page.header(pd.DataFrame({"model": [model_title(recording)]}), " · ".join(filter(None, [shown, *notes, border])))


def _three_digits(value: float) -> str:
    return plain_number(float(f"{value:.3g}"))
