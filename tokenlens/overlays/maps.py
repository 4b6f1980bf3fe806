"""Compute maps over the patch grid of a recorded image: cosines, attention, norms and principal components."""

# Shapes: N images, T tokens, P patches, M patches of all images, D channels, C components; h, w the patch grid;
# X heads at q, k and v, 1 elsewhere.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics.token_norm import HIGH_NORM_RATIO, median
from tokenlens.overlays.selection import Token, check_image, position_of, positions_of, prefix_tokens
from tokenlens.recording.recording import Recording
from tokenlens.statistics.components import principal_axes
from tokenlens.tokens import TokenLayout


def cosine_map(x_XTD: Tensor, layout: TokenLayout, token: Token) -> NDArray[np.float32]:
    """Return the cosine of a token to each patch, in [−1, 1], (h, w), mean over heads and class tokens if several.

    Raises:
        LookupError: if the model has no such token.
    """
    unit_XTD = normalize(x_XTD, dim=-1)
    mean_XD = unit_XTD[:, list(positions_of(layout, token))].mean(1)
    cosine_T = (unit_XTD @ mean_XD[:, :, None]).squeeze(-1).mean(0)
    return _on_grid(cosine_T, layout)


def attention_map(row_T: Tensor, layout: TokenLayout) -> NDArray[np.float32]:
    """Return a row of attention to the patches divided by its mean, (h, w), so that uniform attention is 1."""
    map_hw = _on_grid(row_T, layout)
    return map_hw / max(float(map_hw.mean()), float(np.finfo(np.float32).tiny))


def attention_shares(row_T: Tensor, layout: TokenLayout) -> dict[str, float]:
    """Return the share of a token's attention that each group receives; the shares add up to 1."""
    return {group: float(row_T[list(layout.positions(group))].sum()) for group in layout.groups}


def _on_grid(x_T: Tensor, layout: TokenLayout) -> NDArray[np.float32]:
    values: NDArray[np.float32] = layout.patches_of(x_T, -1).reshape(layout.grid).float().numpy()
    return values


@dataclass(frozen=True)
class NormMap:
    """Norms ‖x‖ of the tokens of one image.

    Args:
        norms_hw: norms of the patches.
        high_hw: which of them exceed the threshold.
        threshold: ``HIGH_NORM_RATIO`` × the median patch norm of the image.
        prefix: norms of the prefix tokens, by name.
    """

    norms_hw: NDArray[np.float32]
    high_hw: NDArray[np.bool_]
    threshold: float
    prefix: dict[str, float]


def norm_map(x_XTD: Tensor, layout: TokenLayout) -> NormMap:
    """Return the norms of an image's tokens at a site, averaged over heads if there are any."""
    norm_T = x_XTD.norm(dim=-1).mean(0)
    threshold = HIGH_NORM_RATIO * float(median(layout.patches_of(norm_T, -1)))
    norms_hw = _on_grid(norm_T, layout)
    prefix = {name: float(norm_T[position_of(layout, name)]) for name in prefix_tokens(layout)}
    return NormMap(norms_hw, norms_hw > threshold, threshold, prefix)


@dataclass(frozen=True)
class Components:
    """Principal components of patch features.

    Args:
        scores_NPC: centred coordinates of each patch, largest variance first.
        explained_C: share of the total variance per component, in [0, 1].
    """

    scores_NPC: NDArray[np.float64]
    explained_C: NDArray[np.float64]


def principal_components(patch_NPD: Tensor, count: int = 3) -> Components:
    """Compute principal components over the patches of all images together; see ``principal_axes``.

    Components beyond the number of patches or channels are 0.
    """
    images, patches, channels = patch_NPD.shape
    x_MD = patch_NPD.reshape(-1, channels).double().numpy()
    found = principal_axes(x_MD, count)
    missing = count - len(found.axes_CD)
    scores_MC = np.pad(found.scores(x_MD), ((0, 0), (0, missing)))
    return Components(scores_MC.reshape(images, patches, count), np.pad(found.explained_C, (0, missing)))


def as_rgb(scores_NPC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return three components as colours in [0, 1], each scaled from its 1st to its 99th percentile over all images."""
    low, high = np.percentile(scores_NPC, (1, 99), axis=(0, 1))
    rgb: NDArray[np.float64] = np.clip((scores_NPC - low) / np.where(high > low, high - low, 1), 0, 1)
    return rgb


def photograph(recording: Recording, image: int) -> NDArray[np.float32]:
    """Return an image as the model saw it, with the normalization undone: RGB in [0, 1], (height, width, 3)."""
    check_image(recording, image)
    assert recording.images is not None
    if recording.images.shape[1] != 3:
        raise ValueError(f"maps are drawn on photographs of 3 channels; these images have {recording.images.shape[1]}")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recording.mean, recording.std))
    pixels: NDArray[np.float32] = (recording.images[image] * std + mean).clamp(0, 1).permute(1, 2, 0).float().numpy()
    return pixels
