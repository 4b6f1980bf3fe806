"""Draw the nearest patches of other images, joined by lines with the patch they correspond to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from tokenlens.figures.page import Canvas, new_figure, paper, styled
from tokenlens.figures.style import DIVERGING, MODEL_COLOURS
from tokenlens.overlays.before_after import signed_text
from tokenlens.overlays.correspondence import Correspondence, Patch, find_correspondences
from tokenlens.overlays.drawing import draw_overlay, draw_picture, outline
from tokenlens.overlays.map_grid import round_up
from tokenlens.overlays.maps import photograph
from tokenlens.overlays.selection import covered_by, head_text, image_title, model_title, site_text
from tokenlens.recording.recording import Recording
from tokenlens.tokens import Site


@styled
def correspondence(
    recording: Recording,
    patch: Patch | Sequence[Patch],
    image: int = 0,
    others: Sequence[int] | None = None,
    block: int = -1,
    site: str = Site.RESID_POST,
    head: int | None = None,
) -> Figure:
    """Draw the patches of other images that are nearest to a patch, or to several, joined by lines.

    For a single patch, its cosine to each patch is drawn over the other images, on one scale.

    Args:
        recording: a recording of the images with the site.
        patch: (row, column), or several of them.
        image: index of their image.
        others: indices of the other images; None for all of them.
        block: the block; negative numbers count from the last recorded one. Ignored at ``final_norm``.
        site: the site of the patches.
        head: one head at q, k and v; None for the mean of the heads' cosines.

    Raises:
        LookupError: if the recording lacks an image, block, site, head or patch, or has one image.
    """
    patches = [patch] if isinstance(patch[0], int) else list(patch)
    found = find_correspondences(recording, patches, image, others, block, site, head)  # type: ignore[arg-type]
    targets = list(dict.fromkeys(each.target for each in found))
    columns = 1 + min(len(targets), 3)
    rows = -(-len(targets) // (columns - 1))
    pixels = photograph(recording, image)
    width_mm = (paper().width - 4) / columns - 2
    figure = new_figure(rows * (width_mm * pixels.shape[0] / pixels.shape[1] + 8 + 3.4 * len(patches)) + 8)
    gridspec = figure.add_gridspec(rows, columns)
    source = figure.add_subplot(gridspec[:, 0])
    draw_picture(source, pixels, recording, image)
    source.set_title(image_title(recording, image), fontweight="normal")
    high = round_up(max(float(np.abs(each.cosine_hw).max()) for each in found))
    panels = [source]
    for number, target in enumerate(targets):
        panel = figure.add_subplot(gridspec[number // (columns - 1), 1 + number % (columns - 1)])
        of_target = [each for each in found if each.target == target]
        if len(patches) == 1:
            drawn = draw_overlay(panel, of_target[0].cosine_hw, recording, target, DIVERGING, (-high, high))
        else:
            draw_picture(panel, photograph(recording, target), recording, target)
        panel.set_title(image_title(recording, target), fontweight="normal")
        panel.set_xlabel("\n".join(f"{each.nearest}: cosine {signed_text(each.cosine)}" for each in of_target))
        panels.append(panel)
        for each in of_target:
            _join(source, panel, recording, each, MODEL_COLOURS[(patches.index(each.patch) + 4) % len(MODEL_COLOURS)])
    source.set_xlabel("\n".join(f"patch {one}" for one in patches))
    if len(patches) == 1:
        bar = figure.colorbar(drawn, ax=panels, location="bottom", shrink=0.4, aspect=45, pad=0.02)
        bar.set_ticks([-high, 0, high], labels=[f"−{high:g}", "0", f"{high:g}"])
        bar.set_label(f"cosine to patch {patches[0]}")
        bar.outline.set_visible(False)
    page = Canvas(figure, np.array([panels], dtype=object), new=True)
    where = [site_text(recording, block, site), head_text(site, head)]
    note = " · ".join(filter(None, [*where, "under each image: its nearest patch (row, column)"]))
    page.header(pd.DataFrame({"model": [model_title(recording)]}), note)
    return figure


def _join(source: Axes, panel: Axes, recording: Recording, found: Correspondence, colour: str) -> None:
    """Outline a patch and its nearest one, and draw a line between their centres."""
    grid, covered = recording.layout.grid, covered_by(recording)
    outline(source, found.patch, grid, covered, colour, 1.6)
    outline(panel, found.nearest, grid, covered, colour, 1.6)
    ends = [
        ((column + 0.5) * covered[1] / grid[1], (row + 0.5) * covered[0] / grid[0])
        for row, column in (found.patch, found.nearest)
    ]
    for line_colour, width in (("white", 2.2), (colour, 1.0)):
        line = ConnectionPatch(
            ends[0], ends[1], "data", axesA=source, axesB=panel, color=line_colour, linewidth=width, zorder=6
        )
        line.set_in_layout(False)
        source.figure.add_artist(line)
