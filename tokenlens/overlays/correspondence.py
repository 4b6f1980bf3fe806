"""The patch of another image that is most similar to a given patch."""

# Shapes: P patches of the other image, D channels, X heads at q, k and v and 1 elsewhere; h, w the patch grid.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch.nn.functional import normalize

from tokenlens.overlays.selection import block_of, image_count, image_title, layout_at, position_of, tokens_at
from tokenlens.recording.recording import Recording
from tokenlens.tokens import Site

Patch = tuple[int, int]


@dataclass(frozen=True)
class Correspondence:
    """The nearest patch of another image.

    Args:
        source, patch: index of the image, and its patch.
        target, nearest: index of the other image, and its patch with the largest cosine.
        cosine: cosine of the two, in [−1, 1].
        cosine_hw: cosine of ``patch`` to each patch of the other image.
    """

    source: int
    patch: Patch
    target: int
    nearest: Patch
    cosine: float
    cosine_hw: NDArray[np.float32]


def find_correspondence(
    recording: Recording,
    patch: Patch,
    source: int = 0,
    target: int = 1,
    block: int = -1,
    site: str = Site.RESID_POST,
    head: int | None = None,
) -> Correspondence:
    """Find the patch of another image whose cosine to a patch is the largest.

    Args:
        recording: a recording of both images with the site.
        patch: (row, column) in the source.
        source, target: indices of the images.
        block: the block; negative numbers count from the last recorded one. Ignored at ``final_norm``.
        site: the site of the patches.
        head: one head at q, k and v; None for the mean of the heads' cosines.

    Raises:
        LookupError: if the recording lacks an image, block, site, head or patch.
    """
    layout = layout_at(recording, block, site)
    at = position_of(layout, patch)
    x_XD = tokens_at(recording, source, block, site, head)[:, at]
    y_XPD = layout.patches_of(tokens_at(recording, target, block, site, head))
    cosine_P = (normalize(y_XPD, dim=-1) @ normalize(x_XD, dim=-1)[:, :, None]).squeeze(-1).mean(0)
    cosine_hw: NDArray[np.float32] = cosine_P.reshape(layout.grid).numpy()
    row, column = np.unravel_index(int(cosine_hw.argmax()), layout.grid)
    return Correspondence(source, patch, target, (int(row), int(column)), float(cosine_hw[row, column]), cosine_hw)


def correspondence_frame(recording: Recording, found: Sequence[Correspondence]) -> pd.DataFrame:
    """Return a row per correspondence: image, row and column, the other image, its row and column, and the cosine."""
    return pd.DataFrame(
        [
            {
                "image": image_title(recording, each.source),
                "row": each.patch[0],
                "column": each.patch[1],
                "other_image": image_title(recording, each.target),
                "other_row": each.nearest[0],
                "other_column": each.nearest[1],
                "cosine": each.cosine,
            }
            for each in found
        ]
    )


def find_correspondences(
    recording: Recording,
    patches: Sequence[Patch],
    source: int = 0,
    targets: Sequence[int] | None = None,
    block: int = -1,
    site: str = Site.RESID_POST,
    head: int | None = None,
) -> list[Correspondence]:
    """Find the nearest patch to each of some patches in each of the other images (all others by default).

    Raises:
        LookupError: as ``find_correspondence``, and for a recording of a single image.
    """
    count = image_count(recording)
    others = [index for index in range(count) if index != source] if targets is None else list(targets)
    if not others:
        raise LookupError(f"a correspondence needs another image, but the recording has {count}")
    where = block if site == Site.FINAL_NORM else block_of(recording, block)
    return [
        find_correspondence(recording, patch, source, target, where, site, head)
        for patch in patches
        for target in others
    ]
