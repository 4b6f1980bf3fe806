"""The state behind the widget: the selection (image, block, site, head, token), and its maps and numbers by model."""

# Shapes: T tokens, D channels, H heads, X heads at q, k and v and 1 elsewhere; h, w the patch grid.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics.token_norm import HIGH_NORM_RATIO
from tokenlens.overlays.before_after import NORM_INPUTS, before_and_after, tokens_before
from tokenlens.overlays.components import stack_patches
from tokenlens.overlays.correspondence import Correspondence, find_correspondence
from tokenlens.overlays.maps import (
    NormMap,
    as_rgb,
    attention_map,
    attention_shares,
    cosine_map,
    norm_map,
    principal_components,
)
from tokenlens.overlays.selection import (
    Token,
    attention_by_head,
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

KEPT_COLOURS = 256
"""Maps of principal components that are kept, because they take longest and do not depend on the token."""


@dataclass(frozen=True)
class Selection:
    """What is shown.

    Args:
        image: index of the image.
        block: the block of the first model.
        site: the site.
        head: the head; None for the mean.
        token: a prefix token's name or (row, column).
        other: index of another image in which the patch nearest to the token is searched; None with a single image.
        shared: whether maps of all models have one scale.
    """

    image: int
    block: int
    site: str
    head: int | None
    token: Token
    other: int | None = None
    shared: bool = False


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
        cosine_hw: cosine of the token to each patch at the site, in [−1, 1].
        before_hw: the same before the norm, if the site is a norm.
        attention_hw: attention of the token to each patch, divided by its mean over patches.
        heads_Hhw: the same of each head.
        cls_attention_hw: the same of CLS.
        colours_hw3: the first three principal components of the patches as red, green and blue, in [0, 1].
        norms_hw: norm of each patch over the median.
        high_hw: which patches are high-norm tokens at the site.
        match: the patch of the other image that is nearest to the token, if that is a patch.
        numbers: numbers of the token.
        notes: reasons for anything missing.
    """

    block: int
    token: Token
    cosine_hw: NDArray[np.float32] | None = None
    before_hw: NDArray[np.float32] | None = None
    attention_hw: NDArray[np.float32] | None = None
    heads_Hhw: NDArray[np.float32] | None = None
    cls_attention_hw: NDArray[np.float32] | None = None
    colours_hw3: NDArray[np.float64] | None = None
    norms_hw: NDArray[np.float32] | None = None
    match: Correspondence | None = None
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
        self._norm_inputs: dict[tuple[int, int, str], str] = {}
        self._colours: dict[tuple[int, int, int, str, int | None], NDArray[np.float64]] = {}

    def start(self) -> Selection:
        """Return the initial selection: CLS (or the middle patch) at the first norm of the last block."""
        rows, columns = self.recordings[0].layout.grid
        preferred = [site for site in (Site.NORM1, Site.RESID_POST) if site in self.sites]
        token = self.prefix[0] if self.prefix else (rows // 2, columns // 2)
        other = 1 if len(self.images) > 1 else None
        return Selection(0, self.blocks[-1], str([*preferred, self.sites[-1]][0]), None, token, other)

    def choose(self, selection: Selection, **changes: Any) -> Selection:
        """Return a selection with some fields changed; ``other`` becomes the next image if it is ``image``.

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
        if chosen.other is not None:
            check_image(self.recordings[0], chosen.other)
            if chosen.other == chosen.image:  # there, a patch would be nearest to itself
                others = len(self.images)
                chosen = replace(chosen, other=None if others == 1 else (chosen.image + 1) % others)
        if chosen.site not in self.sites:
            raise LookupError(f"no site {chosen.site!r} was recorded; recorded sites: {', '.join(self.sites)}")
        if chosen.head is not None and not 0 <= chosen.head < self.heads:
            raise LookupError(f"the models have heads 0 to {self.heads - 1}, got {chosen.head}; None is their mean")
        if not isinstance(chosen.token, str) or chosen.token not in self.prefix:
            position_of(self.recordings[0].layout, chosen.token)
        return replace(chosen, block=block_of(self.recordings[0], chosen.block))

    def views(self, selection: Selection) -> list[View]:
        """Return the view of each model."""
        return [self._view(number, recording, selection) for number, recording in enumerate(self.recordings)]

    def _view(self, number: int, recording: Recording, selection: Selection) -> View:
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
            shown["norms_hw"] = norms.norms_hw / max(norms.threshold / HIGH_NORM_RATIO, 1e-30)
            shown["colours_hw3"] = self._components(number, selection.image, block, selection.site, head)
            shown["numbers"] = _token_numbers(x_XTD, layout, token, norms)
            if selection.site in NORM_INPUTS:
                try:
                    before_1TD = self._before(number, selection.image, block, selection.site)
                    shown["before_hw"] = cosine_map(before_1TD, layout, token)
                except LookupError as error:
                    notes.append(str(error))
            if not isinstance(token, str) and selection.other is not None:
                match = find_correspondence(
                    recording, token, selection.image, selection.other, block, selection.site, head
                )
                shown["match"] = match
                shown["numbers"] += [Number("cosine to nearest patch", match.cosine)]
        try:
            shown |= self._attention(recording, selection, block, token, shown.get("numbers", []))
        except LookupError as error:
            notes.append(str(error))
        return View(block, token, notes=notes, **shown)

    def _before(self, number: int, image: int, block: int, norm: str) -> Tensor:
        """Return the tokens before a norm; whether they are its input is checked once per block."""
        key = number, block, norm
        if key not in self._norm_inputs:
            try:
                before_and_after(self.recordings[number], image, block, norm)
                self._norm_inputs[key] = ""
            except LookupError as error:
                self._norm_inputs[key] = str(error)
        if self._norm_inputs[key]:
            raise LookupError(self._norm_inputs[key])
        return tokens_before(self.recordings[number], image, block, norm)

    def _components(self, number: int, image: int, block: int, site: str, head: int | None) -> NDArray[np.float64]:
        """Return the principal components of an image as colours (h, w, 3), computed once for all tokens."""
        key = number, image, block, site, head
        if key not in self._colours:
            if len(self._colours) >= KEPT_COLOURS:
                self._colours.pop(next(iter(self._colours)))
            recording = self.recordings[number]
            scores = principal_components(stack_patches(recording, [image], block, site, head)).scores_NPC
            self._colours[key] = as_rgb(scores)[0].reshape(*layout_at(recording, block, site).grid, 3)
        return self._colours[key]

    def _attention(
        self, recording: Recording, selection: Selection, block: int, token: Token, numbers: list[Number]
    ) -> dict[str, Any]:
        layout, image, head = layout_at(recording, block), selection.image, selection.head
        row_HT = attention_by_head(recording, image, block, token)
        if head is not None and head >= len(row_HT):
            raise LookupError(f"the block has heads 0 to {len(row_HT) - 1}, got {head}")
        row_T = row_HT.mean(0) if head is None else row_HT[head]
        shown: dict[str, Any] = {
            "attention_hw": attention_map(row_T, layout),
            "heads_Hhw": np.stack([attention_map(of_head_T, layout) for of_head_T in row_HT]),
        }
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
