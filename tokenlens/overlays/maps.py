"""What one token of a recorded image looks like from the others: maps over the patch grid, without drawing."""

# Shapes: N images, T tokens, R prefix tokens, P patches, D channels, H heads, d channels of one head; h, w the patch
# grid; X heads at q, k and v, 1 elsewhere; C components.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics.token_norm import HIGH_NORM_RATIO, median
from tokenlens.recording.recording import Recording
from tokenlens.tokens import GROUP_TITLES, GROUPS, HEAD_SITES, Site, TokenLayout

Token = str | tuple[int, int]
"""``"cls"``, ``"dist"``, ``"reg0"``, ``"reg1"``, … or a patch as (row, column), counted from 0 at the upper left."""

GROUP_PLURALS = {"cls": "[CLS]", "dist": "distillation", "reg": "registers", "patch": "patches"}


def prefix_tokens(layout: TokenLayout) -> list[str]:
    """Names of the prefix tokens, CLS first: ``["cls", "reg0", "reg1"]``."""
    return [
        f"{group}{index}" if group == "reg" else group
        for group in GROUPS[:-1]
        for index in range(len(layout.positions(group)))
    ]


def position_of(layout: TokenLayout, token: Token) -> int:
    """Where a token stands in the sequence.

    Raises:
        LookupError: for a token that the model does not have, with those that it has.
    """
    rows, columns = layout.grid
    if isinstance(token, str):
        names = prefix_tokens(layout)
        if token in names:
            group = token.rstrip("0123456789")
            return layout.positions(group)[int(token[len(group) :] or 0)]
        prefix = ", ".join(names) or "no prefix token"
        raise LookupError(f"the model has no token {token!r}; it has {prefix} and patches {_patches_text(layout)}")
    if len(token) != 2 or not (0 <= token[0] < rows and 0 <= token[1] < columns):
        raise LookupError(f"a patch is {_patches_text(layout)}, got {tuple(token)}")
    return layout.patch_slice.start + int(token[0]) * columns + int(token[1])


def _patches_text(layout: TokenLayout) -> str:
    return f"(row, column) with row 0 to {layout.grid[0] - 1} and column 0 to {layout.grid[1] - 1}"


def token_title(token: Token) -> str:
    """A token's name as it stands in figures: ``[CLS]``, ``register 0``, ``patch (3, 5)``."""
    if not isinstance(token, str):
        return f"patch ({token[0]}, {token[1]})"
    group = token.rstrip("0123456789")
    return f"{GROUP_TITLES[group]} {token[len(group) :]}".strip()


def block_of(recording: Recording, block: int) -> int:
    """A recorded block; negative ones count from the last recorded one.

    Raises:
        LookupError: for a block that was not recorded.
    """
    blocks = recording.blocks
    if block in blocks:
        return block
    if -len(blocks) <= block < 0:
        return blocks[block]
    raise LookupError(f"block {block} was not recorded; recorded blocks: {blocks}")


def check_image(recording: Recording, image: int) -> None:
    """LookupError for an image that the recording does not have."""
    count = 0 if recording.images is None else len(recording.images)
    if not 0 <= image < count:
        raise LookupError(f"the recording has images 0 to {count - 1}, got {image}")


def tokens_at(recording: Recording, image: int, block: int, site: str, head: int | None = None) -> Tensor:
    """One image's tokens at a site, float32 (X, T, D): a row for each head at q, k and v, else one.

    Args:
        recording: where they come from.
        image: its index.
        block: the block; the ``final_norm`` belongs to none and takes any.
        site: a name of ``Site``.
        head: one head of q, k or v; None for all. The other sites have no heads and take None only.

    Raises:
        LookupError: for what was not recorded or does not exist.
    """
    check_image(recording, image)
    if site not in set(Site):
        raise LookupError(f"unknown site {site!r}; sites are {', '.join(Site)}")
    key = None if site == Site.FINAL_NORM else block_of(recording, block)
    if (key, site) not in recording:
        where = "the model" if key is None else f"block {key}"
        there = ", ".join(s for s in Site if (key, s) in recording) or "none"
        raise LookupError(f"{site} of {where} was not recorded; recorded sites there: {there}")
    x = recording[key, site][image].float()
    if site not in HEAD_SITES:
        if head is not None:
            raise LookupError(f"tokens have heads at q, k and v only; at {site} leave out head (got {head})")
        return x[None]
    return x if head is None else x[_checked_head(head, len(x))][None]


def _checked_head(head: int, heads: int) -> int:
    if not 0 <= head < heads:
        raise LookupError(f"the block has heads 0 to {heads - 1}, got {head}")
    return head


def cosine_map(x_XTD: Tensor, layout: TokenLayout, position: int) -> NDArray[np.float32]:
    """Cosine of one token to every patch, in [−1, 1], (h, w); the mean over heads where there are heads."""
    unit_XTD = normalize(x_XTD, dim=-1)
    cosine_T = (unit_XTD @ unit_XTD[:, position, :, None]).squeeze(-1).mean(0)
    return _on_grid(cosine_T, layout)


def attention_of(recording: Recording, image: int, block: int, token: Token, head: int | None = None) -> Tensor:
    """How one token attends to all, (T,), sums to 1: of one head, or the mean over heads.

    Raises:
        LookupError: for a block whose attention was not recorded, a head or a token that is not there.
    """
    check_image(recording, image)
    position = position_of(recording.layout, token)
    row_HT = recording.attention_rows(block_of(recording, block), image, [position])[:, 0]
    return row_HT.mean(0) if head is None else row_HT[_checked_head(head, len(row_HT))]


def attention_map(row_T: Tensor, layout: TokenLayout) -> NDArray[np.float32]:
    """A row of attention on the patches in units of their mean, (h, w): 1 is what uniform attention would give."""
    map_hw = _on_grid(row_T, layout)
    return map_hw / max(float(map_hw.mean()), float(np.finfo(np.float32).tiny))


def attention_shares(row_T: Tensor, layout: TokenLayout) -> dict[str, float]:
    """How much of a token's attention each group gets; the shares add up to 1."""
    return {group: float(row_T[list(layout.positions(group))].sum()) for group in layout.groups}


def _on_grid(x_T: Tensor, layout: TokenLayout) -> NDArray[np.float32]:
    values: NDArray[np.float32] = x_T[layout.patch_slice].reshape(layout.grid).float().numpy()
    return values


@dataclass(frozen=True)
class NormMap:
    """Lengths ‖x‖ of the tokens of one image.

    Args:
        norms_hw: of the patches.
        high_hw: which of them are high-norm tokens: longer than ``threshold``.
        threshold: ``HIGH_NORM_RATIO`` × the median patch norm of the image.
        prefix: of the prefix tokens, by name.
    """

    norms_hw: NDArray[np.float32]
    high_hw: NDArray[np.bool_]
    threshold: float
    prefix: dict[str, float]


def norm_map(x_XTD: Tensor, layout: TokenLayout) -> NormMap:
    """Lengths of an image's tokens at a site; the mean over heads where there are heads."""
    norm_T = x_XTD.norm(dim=-1).mean(0)
    threshold = HIGH_NORM_RATIO * float(median(norm_T[layout.patch_slice]))
    norms_hw = _on_grid(norm_T, layout)
    prefix = {name: float(norm_T[position_of(layout, name)]) for name in prefix_tokens(layout)}
    return NormMap(norms_hw, norms_hw > threshold, threshold, prefix)


@dataclass(frozen=True)
class Components:
    """Principal components of patch features.

    Args:
        scores_NPC: each patch's coordinates, centred, largest variance first.
        explained_C: each component's share of the total variance, in [0, 1].
    """

    scores_NPC: NDArray[np.float64]
    explained_C: NDArray[np.float64]


def principal_components(patch_NPD: Tensor, count: int = 3) -> Components:
    """First principal components over all patches of all images together, computed in float64.

    An eigenvector's sign means nothing; it is chosen so that the channel with the largest weight has a positive one,
    and the same features give the same colours everywhere. Components beyond the rank are 0.
    """
    images, patches, channels = patch_NPD.shape
    x_MD = patch_NPD.reshape(-1, channels).double()
    x_MD = x_MD - x_MD.mean(0)
    _, singular, loadings_CD = torch.linalg.svd(x_MD, full_matrices=False)
    kept = min(count, len(singular))
    loadings_CD = loadings_CD[:kept]
    largest = loadings_CD.gather(1, loadings_CD.abs().argmax(1, keepdim=True))
    scores = torch.zeros(len(x_MD), count, dtype=torch.float64)
    scores[:, :kept] = x_MD @ (loadings_CD * largest.sign()).T
    variance = singular.square()
    explained = torch.zeros(count, dtype=torch.float64)
    explained[:kept] = variance[:kept] / variance.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return Components(scores.reshape(images, patches, count).numpy(), explained.numpy())


def as_rgb(scores_NPC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Three components as colours in [0, 1], each stretched from its 1st to its 99th percentile over all images."""
    low, high = np.percentile(scores_NPC, (1, 99), axis=(0, 1))
    rgb: NDArray[np.float64] = np.clip((scores_NPC - low) / np.where(high > low, high - low, 1), 0, 1)
    return rgb


def photograph(recording: Recording, image: int) -> NDArray[np.float32]:
    """An image as the model saw it, the normalisation undone: RGB in [0, 1], (height, width, 3)."""
    check_image(recording, image)
    assert recording.images is not None
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recording.mean, recording.std))
    pixels: NDArray[np.float32] = (recording.images[image] * std + mean).clamp(0, 1).permute(1, 2, 0).float().numpy()
    return pixels


def image_title(recording: Recording, image: int) -> str:
    """An image's name in its source, or its index."""
    return recording.names[image] if recording.names else f"image {image}"


def model_title(recording: Recording) -> str:
    """The model's full name; "(untrained)" where its weights are random."""
    return recording.model + (" (untrained)" if recording.untrained else "")
