"""The observer of ``analyze``: takes the sums of what passes, and lets go of it."""

# Shapes: B images, T tokens, P patches, R prefix tokens, K sums over patches, D channels, H heads, d channels a head.

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.families.base import NormParameters, norm_parameters
from tokenlens.recording.attention import AttentionCall, as_float
from tokenlens.reduction.batch import (
    AttentionCell,
    BatchSummary,
    Cell,
    NormCell,
    PatternCell,
    Store,
    TokenCell,
    UpdateCell,
)
from tokenlens.reduction.buffers import Places
from tokenlens.reduction.kernels import Sums
from tokenlens.reduction.pattern import WholePattern
from tokenlens.reduction.summaries import (
    AttentionSummary,
    Kind,
    NormSummary,
    PatternReduction,
    PatternSummary,
    Reduction,
    TokenSummary,
    UpdateSummary,
    precise,
)
from tokenlens.tokens import HEAD_SITES, NORM_SITES, Key, Site, TokenLayout

_LINEAR: tuple[Reduction, ...] = ("unit_patch_sum", "patch_sum")


class Summarizer:
    """The observer of ``analyze``: turns what passes into summaries and lets go of it.

    Args:
        layout: the model's tokens.
        wanted: the sums over patches to take at each site.
        norm_stages: whether norms are followed stage by stage.
        updates: whether the inner products of updates and residuals are taken.
        pattern: whether the CLS row and the prefix columns of the pattern are taken.
        raw: for each metric that looks at the tokens themselves, its name, sites and function.
        whole_pattern: what is taken from every row of the pattern.
        sums: what takes the sums; by default torch operations.

    A forward pass lies between ``start`` and ``end``; ``collect`` hands out what all passes since the last time left
    behind. With ``lay_out`` after a first pass, of which one image is enough, later ones write to places made before.
    """

    def __init__(
        self,
        layout: TokenLayout,
        wanted: Mapping[str, set[Reduction]],
        norm_stages: bool = True,
        updates: bool = True,
        pattern: bool = True,
        raw: Iterable[tuple[str, tuple[str, ...], Callable[[TokenLayout, Tensor], Any]]] = (),
        whole_pattern: Collection[PatternReduction] = (),
        sums: Sums | None = None,
    ) -> None:
        self.layout = layout
        self.wanted = wanted
        self.norm_stages = norm_stages
        self.updates = updates
        self.pattern = pattern
        self.raw = list(raw)
        self._sums = Sums(layout) if sums is None else sums
        self._whole_pattern = WholePattern(layout, whole_pattern)
        # The same at all sites of whole tokens, because one tensor may stand for several of them.
        everywhere = {name for site, names in wanted.items() if site not in HEAD_SITES for name in names}
        self._linear = tuple(name for name in _LINEAR if name in everywhere)
        self._magnitudes = {site for site, names in wanted.items() if "patch_abs_sum" in names}
        if norm_stages and self._magnitudes & set(NORM_SITES):
            self._magnitudes |= {Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST}  # usually a norm's input: read once
        self._indices: list[int] = []
        self._cells: dict[Kind, dict[Key, Cell]] = {}
        self._seen: dict[str, dict[Key, list[Mapping[tuple[str, str], Tensor]]]] = {}
        self._residual: Tensor | None = None
        self._recent: dict[int, tuple[weakref.ref[Tensor], int, TokenCell]] = {}
        self._parameters: dict[int, NormParameters] = {}
        self._places = Places()

    def lay_out(self, images: int) -> None:
        """Make places for so many images; what was seen so far is forgotten."""
        self._places.lay_out(images)
        self._forget()

    @property
    def laid_out(self) -> bool:
        """Whether a pass was seen: what has to be kept is known."""
        return self._places.known

    def has_room(self, images: int) -> bool:
        """Whether a pass of so many images fits before ``collect``."""
        return len(self._indices) + images <= self._places.capacity

    def start(self, indices: list[int]) -> None:
        """Begin a forward pass of the images with these indices."""
        self._cells = {}
        self._residual = None
        self._whole_pattern.start()
        self._recent.clear()
        self._places.start(len(self._indices), len(indices))
        self._sums.start(len(indices))
        self._indices = self._indices + indices

    def end(self) -> None:
        """End it; nothing of the size of the tokens is held any more."""
        self._residual = None
        self._whole_pattern.end()
        self._recent.clear()
        self._places.end()
        self._sums.end()

    @property
    def images(self) -> int:
        """How many images are waiting to be collected."""
        return len(self._indices)

    def collect(self) -> BatchSummary:
        """What all passes since the last time left behind; to be read before the next one starts."""
        raw: dict[str, dict[Key, Mapping[tuple[str, str], Tensor]]] = {
            name: {
                key: {label: torch.cat([part[label] for part in parts]) for label in parts[0]}
                for key, parts in cells.items()
            }
            for name, cells in self._seen.items()
        }
        store = Store(self.layout, self._places, len(self._indices))
        batch = BatchSummary(self._indices, self._cells, store, raw)
        self._forget()
        return batch

    def _forget(self) -> None:
        self._indices, self._cells, self._seen = [], {}, {}

    # -- what the Recorder calls

    def tokens(self, block: int | None, site: Site, x_BTD: Tensor) -> None:
        """Summarize a site; with its residual, if it is an update."""
        residual: Tensor | None = None
        if self.updates and site in (Site.RESID_PRE, Site.RESID_MID):
            # Held until the branch's update arrives; the block holds it that long, too.
            self._residual = x_BTD
        elif self.updates and site in (Site.ATTN_OUT, Site.MLP_OUT):
            residual, self._residual = self._residual, None
        if residual is None:
            cell = self._cell(x_BTD, site)
        else:
            residual_cell = self._cell(residual, site)
            row, products_BT = self._places.place("product", residual_cell.norms_tail, as_float(x_BTD))
            cell = self._cell(x_BTD, site, as_float(residual), products_BT)
            self._put(UpdateSummary, (block, site), UpdateCell(cell, residual_cell, row))
        self._put(TokenSummary, (block, site), cell)
        self._look((block, site), x_BTD)

    def norm(self, block: int | None, site: Site, module: nn.Module, x_BTD: Tensor, y_BTD: Tensor) -> None:
        """Summarize a norm's output and, where wanted, its input and stages."""
        after = self._cell(y_BTD, site)
        self._put(TokenSummary, (block, site), after)
        self._look((block, site), y_BTD)
        if self.norm_stages:
            if id(module) not in self._parameters:
                self._parameters[id(module)] = norm_parameters(module)
            before = self._cell(x_BTD, site)
            stages = self._stages(as_float(x_BTD), self._parameters[id(module)], before, after)
            self._put(NormSummary, (block, site), stages)

    def attention(self, block: int, call: AttentionCall) -> None:
        """Summarize q, k and v per head, the CLS row and the columns of the prefix tokens."""
        for site, x in zip(HEAD_SITES, (call.q_BHTd, call.k_BHTd, call.v_BHTd), strict=True):
            if site in self.wanted:
                names = tuple(name for name in _LINEAR if name in self.wanted[site])
                tokens = as_float(x)
                cell, norms, place_of_rows = self._places_of(tokens, names)
                self._sums.tokens(tokens, names, norms, place_of_rows)
                self._put(TokenSummary, (block, site), cell)
        if self.pattern:
            heads, like = call.q_BHTd.shape[1], as_float(call.q_BHTd)
            row = column = row_BHT = columns_BHR = None
            if self.layout.has("cls"):
                row, row_BHT = self._places.place("cls_row", (heads, self.layout.tokens), like)
            if self.layout.prefix:
                column, columns_BHR = self._places.place("patch_to_prefix", (heads, len(self.layout.prefix)), like)
            self._sums.attention(call, row_BHT, columns_BHR)
            self._put(AttentionSummary, (block, "pattern"), AttentionCell(heads, row, column))
        if self._whole_pattern.wanted:
            rows = [
                self._keep(name, x)
                for name, x in zip(
                    ("cls_rollout", "patch_distance"), self._whole_pattern.reduce(block, call), strict=True
                )
            ]
            self._put(PatternSummary, (block, "pattern"), PatternCell(call.q_BHTd.shape[1], rows[0], rows[1]))

    # -- the sums

    def _keep(self, name: str, x: Tensor | None) -> int | None:
        """Copy a small tensor to its place; the row."""
        if x is None:
            return None
        row, place = self._places.place(name, tuple(x.shape[1:]), x)
        place.copy_(x)
        return row

    def _put(self, kind: Kind, key: Key, cell: Cell) -> None:
        self._cells.setdefault(kind, {})[key] = cell

    def _look(self, key: Key, x: Tensor) -> None:
        for name, sites, function in self.raw:
            if key[1] in sites:
                self._seen.setdefault(name, {}).setdefault(key, []).append(function(self.layout, precise(x)))

    def _cell(
        self, x: Tensor, site: Site, residual: Tensor | None = None, products_BT: Tensor | None = None
    ) -> TokenCell:
        """The summary of a tensor, taken once for all sites it stands for: a block's output is the next's input.

        With a residual, the inner products with that, too.
        """
        known = self._recent.get(id(x))
        tokens = as_float(x)
        norms = rows = magnitudes_BD = None
        if known is not None and known[0]() is x and known[1] == x._version:
            cell = known[2]
        else:
            cell, norms, rows = self._places_of(tokens, self._linear)
            self._recent.pop(id(x), None)  # of another tensor, gone by now; this one is the newest
            if len(self._recent) > 4:
                self._recent.pop(next(iter(self._recent)))
            self._recent[id(x)] = (weakref.ref(x), x._version, cell)
        if cell.abs_row is None and site in self._magnitudes:
            cell.abs_row, magnitudes_BD = self._places.place("patch_abs_sum", (x.shape[-1],), tokens)
        if not (norms is magnitudes_BD is products_BT is None):
            self._sums.tokens(tokens, self._linear, norms, rows, magnitudes_BD, residual, products_BT)
        return cell

    def _places_of(self, x: Tensor, sums: tuple[Reduction, ...]) -> tuple[TokenCell, Tensor, Tensor]:
        """Places for every norm, the prefix tokens and sums over patches of tokens (B, T, D) or (B, H, T, d)."""
        *lead, tokens, channels = x.shape[1:]
        norms_tail = (*lead, tokens)
        rows_tail = (*lead, len(self.layout.prefix) + len(sums), channels)
        norms_row, norms = self._places.place("norms", norms_tail, x)
        row, rows = self._places.place("rows", rows_tail, x)
        return TokenCell(rows_tail, norms_tail, sums, row, norms_row), norms, rows

    def _stages(self, x_BTD: Tensor, parameters: NormParameters, before: TokenCell, after: TokenCell) -> NormCell:
        """Of a norm's input: what the norm computes per token, and the sums after each of its stages."""
        place, patches = self._places.place, self.layout.patches
        means_row = means_BP = None
        if parameters.kind == "layer":
            means_row, means_BP = place("patch_mean", (patches,), x_BTD)
        weight_D = None if parameters.weight_patch is None else parameters.weight_patch.to(x_BTD.dtype)
        stages = 1 if weight_D is None else 2
        lengths_row, lengths_BSP = place("patch_lengths", (stages, patches), x_BTD)
        sums_row, sums_BSD = place("stage_sums", (stages, x_BTD.shape[-1]), x_BTD)
        self._sums.stages(self.layout.patches_of(x_BTD), weight_D, means_BP, lengths_BSP, sums_BSD)
        return NormCell(before, after, stages, means_row, lengths_row, sums_row, parameters)
