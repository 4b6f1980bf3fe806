"""The state behind the widget: the selection (image, block, site, head, token), and its maps and numbers by model."""

# Shapes: T tokens, D channels, X heads at q, k and v and 1 elsewhere; h, w the patch grid.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tokenlens.metrics.token_norm import HIGH_NORM_RATIO
from tokenlens.overlays.maps import NormMap, attention_map, attention_shares, cosine_map, norm_map
from tokenlens.overlays.selection import (
    GROUP_PLURALS,
    Token,
    attention_of,
    block_of,
    check_image,
    position_of,
    prefix_tokens,
    tokens_at,
)
from tokenlens.recording.recording import Recording
from tokenlens.tokens import GROUPS, HEAD_SITES, Site


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
            for group in GROUPS[:-1]
            for name in max(([n for n in names if n.startswith(group)] for names in prefixes), key=len)
        ]

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
        token = selection.token
        if not isinstance(token, str):
            token = _same_position(self.recordings[0].layout.grid, token, recording.layout.grid)
        notes: list[str] = []
        try:
            position = position_of(recording.layout, token)
        except LookupError as error:
            return View(block, token, notes=[str(error)])
        shown: dict[str, Any] = {}
        try:
            head = selection.head if selection.site in HEAD_SITES else None
            x_XTD = tokens_at(recording, selection.image, block, selection.site, head)
        except LookupError as error:
            notes.append(str(error))
        else:
            norms = norm_map(x_XTD, recording.layout)
            shown["cosine_hw"] = cosine_map(x_XTD, recording.layout, position)
            shown["high_hw"] = norms.high_hw
            shown["numbers"] = _token_numbers(x_XTD, recording, token, norms)
        try:
            shown |= self._attention(recording, selection, block, token, shown.get("numbers", []))
        except LookupError as error:
            notes.append(str(error))
        return View(block, token, notes=notes, **shown)

    def _attention(
        self, recording: Recording, selection: Selection, block: int, token: Token, numbers: list[Number]
    ) -> dict[str, Any]:
        layout, image, head = recording.layout, selection.image, selection.head
        row_T = attention_of(recording, image, block, token, head)
        shown: dict[str, Any] = {"attention_hw": attention_map(row_T, layout)}
        shares = [
            Number(f"attention to {GROUP_PLURALS[group]}", 100 * share, "%")
            for group, share in attention_shares(row_T, layout).items()
        ]
        position = position_of(layout, token)
        shares.append(Number("attention to itself", 100 * float(row_T[position]), "%"))
        if layout.has("cls"):
            cls_row_T = row_T if token == "cls" else attention_of(recording, image, block, "cls", head)
            shown["cls_attention_hw"] = attention_map(cls_row_T, layout)
            shares.append(Number("attention from [CLS]", 100 * float(cls_row_T[position]), "%"))
        return shown | {"numbers": numbers + shares}


def _token_numbers(x_XTD: Tensor, recording: Recording, token: Token, norms: NormMap) -> list[Number]:
    """Return the norm and the cosines of a token, averaged over heads if there are any."""
    layout = recording.layout
    x_XD = x_XTD[:, position_of(layout, token)]
    norm = float(x_XD.norm(dim=-1).mean())
    numbers = [
        Number("norm ‖x‖", norm),
        Number("‖x‖ / median patch", norm / max(norms.threshold / HIGH_NORM_RATIO, 1e-30)),
    ]
    if not isinstance(token, str):
        numbers.append(Number("high-norm token", float(norms.high_hw[token])))
    if layout.has("cls"):
        cls_XD = x_XTD[:, position_of(layout, "cls")]
        numbers.append(Number("cosine to [CLS]", float(cosine_similarity(x_XD, cls_XD, dim=-1).mean())))
    mean_XD = layout.patches_of(x_XTD).mean(1)
    numbers.append(Number("cosine to mean patch", float(cosine_similarity(x_XD, mean_XD, dim=-1).mean())))
    return numbers


def _same_depth(blocks: list[int], block: int, others: list[int]) -> int:
    """Return the block of another model at the nearest relative depth, (index + 0.5) / count."""
    depth = (blocks.index(block) + 0.5) / len(blocks)
    return others[min(int(depth * len(others)), len(others) - 1)]


def _same_position(grid: tuple[int, int], patch: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Return the patch of another grid that contains the centre of a patch."""
    row, column = (int((at + 0.5) / many * n) for at, many, n in zip(patch, grid, other, strict=True))
    return row, column


def _heads(recording: Recording) -> int:
    counts = [x.shape[1] for (_, site), x in recording.items() if site in HEAD_SITES]
    return max(counts + [x.shape[1] for x in recording.patterns.values()] + [0])


def _some(names: list[str]) -> str:
    return f"{len(names)} images ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
