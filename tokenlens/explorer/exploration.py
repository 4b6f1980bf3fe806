"""The state behind the widget: the selection (image, block, site, head, token), and its maps and numbers by model."""

# Shapes: T tokens, D channels, X heads at q, k and v and 1 elsewhere; h, w the patch grid.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics.token_norm import HIGH_NORM_RATIO
from tokenlens.overlays.maps import NormMap, attention_map, attention_shares, cosine_map, norm_map
from tokenlens.overlays.selection import (
    Token,
    attention_of,
    block_of,
    check_image,
    group_plural,
    layout_at,
    position_of,
    positions_of,
    prefix_tokens,
    tokens_at,
)
from tokenlens.recording.recording import Recording
from tokenlens.tokens import HEAD_SITES, Site, TokenLayout


@dataclass(frozen=True)
class Selection:
    """The selected image, block, site, head (None for the mean) and token (a prefix token's name or (row, column))."""

    image: int
    block: int
    site: str
    head: int | None
    token: Token


@dataclass(frozen=True)
class Number:
    """One number of the selected token; ``unit`` is empty for cosines and ratios."""

    label: str
    value: float
    unit: str = ""


@dataclass(frozen=True)
class View:
    """Maps and numbers of one model for a selection.

    Args:
        block: the block of this model.
        token: the token of this model.
        cosine_hw: cosine of the token to each patch, in [−1, 1].
        attention_hw: attention of the token to each patch, divided by its mean over patches.
        cls_attention_hw: the same for CLS.
        high_hw: which patches are high-norm tokens at the site.
        numbers: numbers of the token.
        notes: reasons for anything missing.
    """

    block: int
    token: Token
    cosine_hw: NDArray[np.float32] | None = None
    attention_hw: NDArray[np.float32] | None = None
    cls_attention_hw: NDArray[np.float32] | None = None
    high_hw: NDArray[np.bool_] | None = None
    numbers: list[Number] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Exploration:
    """Recordings of the same images by one or several models, and the possible selections.

    Args:
        recordings: a selection refers to blocks and patches of the first one; other models show the block at the same
            relative depth and the patch at the same position.

    Raises:
        ValueError: if the recordings have different images or no blocks.
    """

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self.recordings = list(recordings)
        first = self.recordings[0]
        for recording in self.recordings:
            if not recording.blocks or recording.images is None:
                raise ValueError(f"the recording of {recording.model} has no blocks or no images; use tokenlens.record")
            if recording.names != first.names:
                raise ValueError(
                    f"the recordings have different images: {first.model} has {_some(first.names)}, {recording.model} "
                    f"has {_some(recording.names)}; record both from the same images"
                )
        assert first.images is not None
        self.images = first.names or [f"image {index}" for index in range(len(first.images))]
        self.blocks = first.blocks
        recorded = {site for recording in self.recordings for _, site in recording}
        self.sites = [str(site) for site in Site if site in recorded]
        self.heads = max(_heads(recording) for recording in self.recordings)
        prefixes = [prefix_tokens(recording.layout) for recording in self.recordings]
        # For each group, the longest list includes all others.
        self.prefix = [
            name
            for group in dict.fromkeys(group for recording in self.recordings for group in recording.layout.groups)
            for name in max(([n for n in names if n.rstrip("0123456789") == group] for names in prefixes), key=len)
        ]
        if "cls0" in self.prefix:  # "cls" is the mean of the class tokens
            self.prefix.insert(self.prefix.index("cls0"), "cls")

    def start(self) -> Selection:
        """Return the initial selection: CLS (or the middle patch) at the output of the last block."""
        rows, columns = self.recordings[0].layout.grid
        site = str(Site.RESID_POST) if Site.RESID_POST in self.sites else self.sites[-1]
        token = self.prefix[0] if self.prefix else (rows // 2, columns // 2)
        return Selection(0, self.blocks[-1], site, None, token)

    def choose(self, selection: Selection, **changes: Any) -> Selection:
        """Return a selection with some fields changed.

        Raises:
            LookupError: if no model has such an image, block, site, head or token.
        """
        unknown = sorted(set(changes) - set(Selection.__dataclass_fields__))
        if unknown:
            raise LookupError(f"a selection has {', '.join(Selection.__dataclass_fields__)}, got {', '.join(unknown)}")
        if not isinstance(changes.get("token", ""), str):
            changes["token"] = tuple(changes["token"])
        chosen = replace(selection, **changes)
        check_image(self.recordings[0], chosen.image)
        if chosen.site not in self.sites:
            raise LookupError(f"no site {chosen.site!r} was recorded; recorded sites: {', '.join(self.sites)}")
        if chosen.head is not None and not 0 <= chosen.head < self.heads:
            raise LookupError(f"the models have heads 0 to {self.heads - 1}, got {chosen.head}; None is their mean")
        if not isinstance(chosen.token, str) or chosen.token not in self.prefix:
            position_of(self.recordings[0].layout, chosen.token)
        return replace(chosen, block=block_of(self.recordings[0], chosen.block))

    def views(self, selection: Selection) -> list[View]:
        """Return the view of each model."""
        return [self._view(recording, selection) for recording in self.recordings]

    def _view(self, recording: Recording, selection: Selection) -> View:
        block = _same_depth(self.blocks, selection.block, recording.blocks)
        token, layout = selection.token, layout_at(recording, block, selection.site)
        if not isinstance(token, str):
            token = _same_position(self.recordings[0], token, recording)
        notes: list[str] = []
        try:
            positions_of(layout, token)
        except LookupError as error:
            return View(block, token, notes=[str(error)])
        shown: dict[str, Any] = {}
        try:
            head = selection.head if selection.site in HEAD_SITES else None
            x_XTD = tokens_at(recording, selection.image, block, selection.site, head)
        except LookupError as error:
            notes.append(str(error))
        else:
            norms = norm_map(x_XTD, layout)
            shown["cosine_hw"] = cosine_map(x_XTD, layout, token)
            shown["high_hw"] = norms.high_hw
            shown["numbers"] = _token_numbers(x_XTD, layout, token, norms)
        try:
            shown |= self._attention(recording, selection, block, token, shown.get("numbers", []))
        except LookupError as error:
            notes.append(str(error))
        return View(block, token, notes=notes, **shown)

    def _attention(
        self, recording: Recording, selection: Selection, block: int, token: Token, numbers: list[Number]
    ) -> dict[str, Any]:
        layout, image, head = layout_at(recording, block), selection.image, selection.head
        row_T = attention_of(recording, image, block, token, head)
        shown: dict[str, Any] = {"attention_hw": attention_map(row_T, layout)}
        shares = [
            Number(f"attention to {group_plural(group)}", 100 * share, "%")
            for group, share in attention_shares(row_T, layout).items()
        ]
        positions = list(positions_of(layout, token))
        shares.append(Number("attention to itself", 100 * float(row_T[positions].sum()), "%"))
        if layout.has("cls"):
            cls_row_T = row_T if token == "cls" else attention_of(recording, image, block, "cls", head)
            shown["cls_attention_hw"] = attention_map(cls_row_T, layout)
            shares.append(Number("attention from [CLS]", 100 * float(cls_row_T[positions].sum()), "%"))
        return shown | {"numbers": numbers + shares}


def _token_numbers(x_XTD: Tensor, layout: TokenLayout, token: Token, norms: NormMap) -> list[Number]:
    """Return the norm and the cosines of a token, averaged over heads if there are any."""
    x_XGD = x_XTD[:, list(positions_of(layout, token))]
    norm = float(x_XGD.norm(dim=-1).mean())
    numbers = [
        Number("norm ‖x‖", norm),
        Number("‖x‖ / median patch", norm / max(norms.threshold / HIGH_NORM_RATIO, 1e-30)),
    ]
    if not isinstance(token, str):
        numbers.append(Number("high-norm token", float(norms.high_hw[token])))
    if layout.has("cls"):
        cls_XGD = x_XTD[:, list(layout.positions("cls"))]
        numbers.append(Number("cosine to [CLS]", _mean_cosine(x_XGD, cls_XGD)))
    mean_X1D = layout.patches_of(x_XTD).mean(1, keepdim=True)
    numbers.append(Number("cosine to mean patch", _mean_cosine(x_XGD, mean_X1D)))
    return numbers


def _mean_cosine(x_XGD: Tensor, y_XGD: Tensor) -> float:
    """Return the mean cosine over all pairs of a token of each, and over heads."""
    x_XD, y_XD = (normalize(tokens, dim=-1).mean(1) for tokens in (x_XGD, y_XGD))
    return float((x_XD * y_XD).sum(-1).mean())


def _same_depth(blocks: list[int], block: int, others: list[int]) -> int:
    """Return the block of another model at the nearest relative depth, (index + 0.5) / count."""
    depth = (blocks.index(block) + 0.5) / len(blocks)
    return others[min(int(depth * len(others)), len(others) - 1)]


def grid_share(recording: Recording) -> tuple[float, float]:
    """Return the height and the width of the patch grid, divided by those of the image; 1 unless pixels are dropped."""
    assert recording.images is not None
    height, width = recording.images.shape[-2:]
    bottom, right = recording.layout.extent((height, width))
    return bottom / height, right / width


def _same_position(recording: Recording, patch: tuple[int, int], other: Recording) -> tuple[int, int]:
    """Return the patch of another model, at the same images, that contains the centre of a patch."""
    row, column = (
        min(int((at + 0.5) / many * share / other_share * n), n - 1)
        for at, many, share, other_share, n in zip(
            patch, recording.layout.grid, grid_share(recording), grid_share(other), other.layout.grid, strict=True
        )
    )
    return row, column


def _heads(recording: Recording) -> int:
    counts = [x.shape[1] for (_, site), x in recording.items() if site in HEAD_SITES]
    return max(counts + [x.shape[1] for x in recording.patterns.values()] + [0])


def _some(names: list[str]) -> str:
    return f"{len(names)} images ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
