"""A recording drawn on its images: attention, cosines to one token, principal components and norms of the patches.

>>> import tokenlens
>>> recording = tokenlens.record("vit_tiny_patch16_224", pretrained=False)  # doctest: +SKIP
>>> tokenlens.figures.photographs.attention_overlay(recording, image=1, block=-1, query=(4, 9))  # doctest: +SKIP

Every function draws the photograph as the model saw it (its normalisation undone) beside the map, or only the map into
an ``ax`` of yours. The patch grid is laid evenly over the image. As for all figures, ``width`` ("single", "double" or
mm), ``height`` (mm) and ``style`` can be given, too.
"""

# Shapes: h, w the patch grid; H, W pixels.

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from tokenlens.figures._panels import colour_bar, plain_number
from tokenlens.figures.page import Canvas, canvas, paper, styled
from tokenlens.figures.style import DIVERGING, INK, SEQUENTIAL
from tokenlens.metrics.token_norm import HIGH_NORM_RATIO
from tokenlens.overlays.maps import (
    GROUP_PLURALS,
    Token,
    as_rgb,
    attention_map,
    attention_of,
    attention_shares,
    block_of,
    check_image,
    cosine_map,
    image_title,
    model_title,
    photograph,
    position_of,
    principal_components,
    token_title,
    tokens_at,
)
from tokenlens.overlays.maps import norm_map as norms_of
from tokenlens.recording.recording import Recording
from tokenlens.tokens import HEAD_SITES, Site

OPACITY = 0.72
"""Of a map over its photograph: the colours stay those of the colour bar, and the photograph can be made out."""


@styled
def attention_overlay(
    recording: Recording,
    image: int = 0,
    block: int = -1,
    query: Token = "cls",
    head: int | None = None,
    ax: Any = None,
) -> Figure:
    """Where a token looks: its attention to each patch in units of the mean over patches (1 = uniform, from 0 up).

    What goes to CLS and registers is no part of the map; the header has the shares of all groups.

    Args:
        recording: with q and k, or patterns.
        image: index of the image.
        block: the block; negative ones count from the last recorded one.
        query: the token that looks: ``"cls"``, ``"dist"``, ``"reg0"``, … or a patch (row, column).
        head: one head; None for the mean over heads.
        ax: one Axes for the map alone; by default a new figure with the photograph beside it.

    Raises:
        LookupError: for an image, block, head or token that is not there, or attention that was not recorded.
        ValueError: for more than one Axes.
    """
    row_T = attention_of(recording, image, block, query, head)
    map_hw = attention_map(row_T, recording.layout)
    page, panel = _page(recording, image, ax, query)
    high = max(float(np.quantile(map_hw, 0.995)), 1.5)
    drawn = _overlay(panel, recording, image, map_hw, SEQUENTIAL, 0, high)
    _mark(panel, recording, image, query)
    panel.set_title(f"attention of {token_title(query)}")
    largest = float(map_hw.max())
    clipped = largest > high * 1.0001
    _bar(page, drawn, panel, "× uniform", "max" if clipped else "neither")
    shares = attention_shares(row_T, recording.layout).items()
    to = ", ".join(f"{100 * share:.1f} % to {GROUP_PLURALS[group]}" for group, share in shares)
    most = f"largest {largest:.1f} × uniform" if clipped else ""
    _header(page, recording, image, f"block {block_of(recording, block)}", _head_text(head), to, most)
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
    """How alike a token and each patch are: their cosine, in [−1, 1].

    The colours are even around 0 and reach to the largest absolute cosine of another patch.

    Args:
        recording: with the site.
        image: index of the image.
        block: the block; negative ones count from the last recorded one. Ignored at ``final_norm``.
        site: where the tokens are taken.
        token: ``"cls"``, ``"dist"``, ``"reg0"``, … or a patch (row, column).
        head: one head at q, k and v; None for the mean of the heads' cosines.
        ax: one Axes for the map alone; by default a new figure with the photograph beside it.

    Raises:
        LookupError: for an image, block, site, head or token that is not there.
        ValueError: for more than one Axes.
    """
    layout = recording.layout
    x_XTD = tokens_at(recording, image, block, site, head)
    map_hw = cosine_map(x_XTD, layout, position_of(layout, token))
    others = np.abs(map_hw)
    if not isinstance(token, str):
        others[token] = 0
    high = max(float(others.max()), 0.01)
    page, panel = _page(recording, image, ax, token)
    drawn = _overlay(panel, recording, image, map_hw, DIVERGING, -high, high)
    _mark(panel, recording, image, token)
    panel.set_title(f"cosine to {token_title(token)}")
    _bar(page, drawn, panel, "cosine", "max" if float(map_hw.max()) > high * 1.0001 else "neither")
    heads = _head_text(head) if site in HEAD_SITES else ""
    _header(page, recording, image, *_place(recording, block, site), heads)
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
    """What the patches are like: the first three principal components of their features as red, green and blue.

    Each component is stretched from its 1st to its 99th percentile. Its sign is chosen so that the channel with the
    largest weight has a positive one, so the colours come out the same each time. The header has each component's
    share of the variance. Patches alone are used, neither CLS nor registers.

    Args:
        recording: with the site.
        image: index of the image; None for all images of the recording with components over all of them together, so
            that a colour means the same in each.
        block: the block; negative ones count from the last recorded one. Ignored at ``final_norm``.
        site: where the patches are taken.
        head: one head at q, k and v; None for all heads' channels together.
        ax: one Axes for each map, without photographs; by default a new figure with the photographs above the maps.

    Raises:
        LookupError: for an image, block, site or head that is not there.
        ValueError: if the number of Axes is not the number of images.
    """
    count = 0 if recording.images is None else len(recording.images)
    chosen = range(count) if image is None else [image]
    features = [tokens_at(recording, index, block, site, head) for index in chosen]
    patch_NPD = torch.stack([recording.layout.patches_of(x).transpose(0, 1).flatten(1) for x in features])
    components = principal_components(patch_NPD)
    rgb_Nhw3 = as_rgb(components.scores_NPC).reshape(len(chosen), *recording.layout.grid, 3)
    page, maps = _gallery(recording, list(chosen), ax)
    for panel, index, rgb_hw3 in zip(maps, chosen, rgb_Nhw3, strict=True):
        _show(panel, rgb_hw3, recording, index)
        if len(chosen) > 1 and not page.own:
            panel.set_title(image_title(recording, index))
    over = f"components over {count} images" if image is None and count > 1 else "components over this image"
    shares = ", ".join(
        f"{colour} {100 * share:.0f} %"
        for colour, share in zip(("red", "green", "blue"), components.explained_C, strict=True)
    )
    heads = _head_text(head, "all heads") if site in HEAD_SITES else ""
    notes = (*_place(recording, block, site), heads, over, f"of the variance: {shares}")
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
    """How long the patches are: ‖x‖, from 0 up, with high-norm tokens outlined and those of CLS and registers stated.

    A high-norm token is longer than 3 × the median patch norm of its image, as in the metric ``token_norm``. Where the
    longest is more than 5 × the median, the colours end there and the bar says so.

    Args:
        recording: with the site.
        image: index of the image.
        block: the block; negative ones count from the last recorded one. Ignored at ``final_norm``.
        site: where the tokens are taken.
        head: one head at q, k and v; None for the mean of the heads' norms.
        ax: one Axes for the map alone; by default a new figure with the photograph beside it.

    Raises:
        LookupError: for an image, block, site or head that is not there.
        ValueError: for more than one Axes.
    """
    found = norms_of(tokens_at(recording, image, block, site, head), recording.layout)
    longest = float(found.norms_hw.max())
    high = min(longest, 5 / HIGH_NORM_RATIO * found.threshold)
    page, panel = _page(recording, image, ax)
    drawn = _overlay(panel, recording, image, found.norms_hw, SEQUENTIAL, float(found.norms_hw.min()), high)
    for row, column in np.argwhere(found.high_hw):
        _mark(panel, recording, image, (int(row), int(column)))
    panel.set_title("norm of the patches")
    _bar(page, drawn, panel, "‖x‖", "max" if longest > high * 1.0001 else "neither")
    count = int(found.high_hw.sum())
    notes = [
        f"{count} of {found.high_hw.size} high-norm tokens outlined: ‖x‖ > {HIGH_NORM_RATIO:g} × median = "
        f"{plain_number(float(f'{found.threshold:.3g}'))}",
        f"longest {plain_number(float(f'{longest:.3g}'))}",
        ", ".join(f"{token_title(name)} {plain_number(float(f'{x:.3g}'))}" for name, x in found.prefix.items()),
        _head_text(head) if site in HEAD_SITES else "",
    ]
    _header(page, recording, image, *_place(recording, block, site), *notes)
    return page.figure


# -- panels


def _page(recording: Recording, image: int, ax: Any, token: Token | None = None) -> tuple[Canvas, Axes]:
    """A figure with the photograph on its left, and the Axes of the map."""
    if ax is not None:
        page = canvas(ax, 1, 1, 0)
        return page, page.axes[0, 0]
    page = canvas(None, 1, 2, _height_mm(recording, 0.45 * paper().width) + 12)
    left, right = page.axes[0]
    _show(left, photograph(recording, image), recording, image)
    left.set_title(image_title(recording, image))
    if token is not None:
        _mark(left, recording, image, token)
    return page, right


def _gallery(recording: Recording, images: list[int], ax: Any) -> tuple[Canvas, list[Axes]]:
    """Photographs with their maps under them, at most six side by side; one image has its map beside it."""
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
        _show(above, photograph(recording, images[number]), recording, images[number])
        above.set_title(image_title(recording, images[number]), fontsize=7, fontweight="normal")
        maps.append(below)
    return page, maps


def _height_mm(recording: Recording, width_mm: float) -> float:
    assert recording.images is not None
    height, width = recording.images.shape[-2:]
    return width_mm * min(height / width, 3.0)


def _show(panel: Axes, picture: NDArray[Any], recording: Recording, image: int, **options: Any) -> AxesImage:
    """A picture stretched over the image's pixels, without axes."""
    check_image(recording, image)
    assert recording.images is not None
    height, width = recording.images.shape[-2:]
    drawn = panel.imshow(picture, extent=(0, width, height, 0), interpolation="none", **options)
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set_visible(False)
    return drawn


def _overlay(
    panel: Axes, recording: Recording, image: int, map_hw: NDArray[Any], colours: str, low: float, high: float
) -> AxesImage:
    """The photograph in grey with the map over it."""
    grey_HW = photograph(recording, image) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
    _show(panel, grey_HW, recording, image, cmap="gray", vmin=0, vmax=1)
    return _show(panel, map_hw, recording, image, cmap=colours, vmin=low, vmax=high, alpha=OPACITY)


def _mark(panel: Axes, recording: Recording, image: int, token: Token) -> None:
    """An outline around a patch; prefix tokens have no place on the image."""
    if isinstance(token, str):
        return
    assert recording.images is not None
    rows, columns = recording.layout.grid
    height, width = recording.images.shape[-2] / rows, recording.images.shape[-1] / columns
    corner = token[1] * width, token[0] * height
    for line, width_pt in (("white", 2.6), (INK, 1.2)):
        panel.add_patch(
            Rectangle(corner, width, height, fill=False, edgecolor=line, linewidth=width_pt, clip_on=False, zorder=5)
        )


def _bar(page: Canvas, drawn: AxesImage, panel: Axes, label: str, extend: str) -> None:
    colour_bar(page.figure, drawn, panel, label, extend=extend, fraction=0.046, pad=0.03)


def _header(page: Canvas, recording: Recording, image: int | None, *notes: str) -> None:
    shown = "" if image is None or page.own else image_title(recording, image)
    page.header(pd.DataFrame({"model": [model_title(recording)]}), " · ".join(filter(None, [shown, *notes])))


def _place(recording: Recording, block: int, site: str) -> tuple[str, ...]:
    return (site,) if site == Site.FINAL_NORM else (f"block {block_of(recording, block)}", site)


def _head_text(head: int | None, all_heads: str = "mean of the heads") -> str:
    return all_heads if head is None else f"head {head}"


__all__ = ["attention_overlay", "cosine_to_patch", "norm_map", "pca_rgb"]
