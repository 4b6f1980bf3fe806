"""The observer of ``analyze``: takes the sums of what passes, and lets go of it."""

# Shapes: B images, T tokens, P patches, R prefix tokens, K sums over patches, D channels, H heads, d channels a head.

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.attention import AttentionCall, as_float
from tokenlens.cells import AttentionCell, BatchSummary, Cell, NormCell, PatternCell, Store, TokenCell, UpdateCell
from tokenlens.families import NormParameters, norm_parameters
from tokenlens.places import Places
from tokenlens.recording import HEAD_SITES, Key, Site
from tokenlens.summaries import (
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
from tokenlens.tokens import TokenLayout
from tokenlens.whole_pattern import WholePattern

_LINEAR: tuple[Reduction, ...] = ("unit_patch_sum", "patch_sum")


def weighted_sums(weights: Tensor, x: Tensor, out: Tensor) -> None:
    """Σ_i w_ki·x_i for K sets of weights, in one pass: (..., K, T) and (..., T, D) give (..., K, D) in ``out``."""
    if torch.get_float32_matmul_precision() == "highest":
        torch.matmul(weights, x, out=out)
        return
    # The user lets matrix products run in TF32 or bfloat16; these sums must not.
    for k, row in enumerate(weights.unbind(-2)):
        torch.sum(row.unsqueeze(-1) * x, dim=-2, out=out.select(-2, k))


class Workspace:
    """Two tensors of the size of one site's tokens to compute in, while a forward pass lasts.

    Made before it, like the ``Places``: results in new memory would have to be fetched into the cache first.
    """

    def __init__(self) -> None:
        self._shapes: dict[tuple[int, tuple[int, ...], torch.dtype, torch.device], None] = {}
        self._tensors: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def start(self, images: int) -> None:
        """Make what the last pass has used."""
        for slot, tail, dtype, device in self._shapes:
            self._tensors[slot, tail] = torch.empty((images, *tail), dtype=dtype, device=device)

    def end(self) -> None:
        """Let go of it."""
        self._tensors.clear()

    def like(self, x: Tensor, slot: int) -> Tensor:
        """A contiguous tensor of the shape and type of ``x``, with anything in it."""
        tail = tuple(x.shape[1:])
        found = self._tensors.get((slot, tail))
        if found is None or found.dtype != x.dtype or len(found) != len(x):
            self._shapes[slot, tail, x.dtype, x.device] = None
            found = self._tensors[slot, tail] = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        return found


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
    ) -> None:
        self.layout = layout
        self.wanted = wanted
        self.norm_stages = norm_stages
        self.updates = updates
        self.pattern = pattern
        self.raw = list(raw)
        self._whole_pattern = WholePattern(layout, whole_pattern)
        # The same at all sites of whole tokens, because one tensor may stand for several of them.
        everywhere = {name for site, names in wanted.items() if site not in HEAD_SITES for name in names}
        self._linear = tuple(name for name in _LINEAR if name in everywhere)
        self._indices: list[int] = []
        self._cells: dict[Kind, dict[Key, Cell]] = {}
        self._seen: dict[str, dict[Key, list[Mapping[tuple[str, str], Tensor]]]] = {}
        self._residual: Tensor | None = None
        self._recent: dict[int, tuple[weakref.ref[Tensor], int, TokenCell]] = {}
        self._parameters: dict[int, NormParameters] = {}
        self._weights: dict[tuple[Any, ...], tuple[Tensor, Tensor | None]] = {}
        self._places = Places()
        self._workspace = Workspace()

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
        self._workspace.start(len(indices))
        self._indices = self._indices + indices

    def end(self) -> None:
        """End it; nothing of the size of the tokens is held any more."""
        self._residual = None
        self._whole_pattern.end()
        self._recent.clear()
        self._places.end()
        self._workspace.end()

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
        cell = self._cell(x_BTD, site)
        self._put(TokenSummary, (block, site), cell)
        self._look((block, site), x_BTD)
        if not self.updates:
            return
        if site in (Site.RESID_PRE, Site.RESID_MID):
            # Held until the branch's update arrives; the block holds it that long, too.
            self._residual = x_BTD
        elif site in (Site.ATTN_OUT, Site.MLP_OUT):
            residual, self._residual = self._residual, None
            if residual is None:
                return
            residual_cell, x_BTD = self._cell(residual, site), as_float(x_BTD)
            row, product_BT = self._places.place("product", cell.norms_tail, x_BTD)
            torch.linalg.vecdot(x_BTD, as_float(residual), out=product_BT)
            self._put(UpdateSummary, (block, site), UpdateCell(cell, residual_cell, row))

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
                self._put(TokenSummary, (block, site), self._summarize(as_float(x), names))
        if self.pattern:
            heads, like = call.q_BHTd.shape[1], as_float(call.q_BHTd)
            row = column = None
            if self.layout.has("cls"):
                row, place_BHT = self._places.place("cls_row", (heads, self.layout.tokens), like)
                scratch = self._workspace.like(like, 0)
                place_BHT.copy_(call.rows(self.layout.positions("cls"), scratch).squeeze(-2))
            if self.layout.prefix:
                column, place_BHR = self._places.place("patch_to_prefix", (heads, len(self.layout.prefix)), like)
                scratch = self._workspace.like(like, 0)
                columns_BHTR = call.columns(self.layout.prefix_positions, scratch)
                torch.mean(self.layout.patches_of(columns_BHTR), dim=-2, out=place_BHR)
            self._put(AttentionSummary, (block, "pattern"), AttentionCell(heads, row, column))
        if self._whole_pattern.wanted:
            rows = [self._keep(name, x) for name, x in zip(
                ("cls_rollout", "patch_distance"), self._whole_pattern.reduce(block, call), strict=True
            )]
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

    def _cell(self, x: Tensor, site: Site) -> TokenCell:
        """The summary of a tensor, taken once for all sites it stands for: a block's output is the next's input."""
        known = self._recent.get(id(x))
        if known is not None and known[0]() is x and known[1] == x._version:
            cell = known[2]
        else:
            cell = self._summarize(as_float(x), self._linear)
            self._recent.pop(id(x), None)  # of another tensor, gone by now; this one is the newest
            if len(self._recent) > 4:
                self._recent.pop(next(iter(self._recent)))
            self._recent[id(x)] = (weakref.ref(x), x._version, cell)
        if cell.abs_row is None and "patch_abs_sum" in self.wanted.get(site, ()):
            patches_BPD = self.layout.patches_of(as_float(x))
            cell.abs_row, place_BD = self._places.place("patch_abs_sum", (x.shape[-1],), patches_BPD)
            magnitudes = torch.abs(patches_BPD, out=self._workspace.like(patches_BPD, 0))
            torch.sum(magnitudes, dim=-2, out=place_BD)
        return cell

    def _summarize(self, x: Tensor, sums: tuple[Reduction, ...]) -> TokenCell:
        """Of tokens (B, T, D) or (B, H, T, d): every norm, the prefix tokens, and sums over patches."""
        *lead, tokens, channels = x.shape[1:]
        norms_tail = (*lead, tokens)
        rows_tail = (*lead, len(self.layout.prefix) + len(sums), channels)
        norms_row, norms = self._places.place("norms", norms_tail, x)
        torch.linalg.vector_norm(x, dim=-1, out=norms)
        weights, unit = self._row_weights(x, sums)
        if unit is not None:
            torch.reciprocal(self.layout.patches_of(norms, -1), out=unit)
        row, rows = self._places.place("rows", rows_tail, x)
        weighted_sums(weights, x, rows)
        return TokenCell(rows_tail, norms_tail, sums, row, norms_row)

    def _row_weights(self, x: Tensor, sums: tuple[Reduction, ...]) -> tuple[Tensor, Tensor | None]:
        """Weights (..., R + K, T) that pick the prefix tokens and sum the patches, and where to fill in 1/norm.

        0 · x adds nothing to the token that a row picks, so it is that token exactly.
        """
        key = (x.shape[:-1], sums, x.dtype, x.device)
        if key not in self._weights:
            layout = self.layout
            weights = x.new_zeros((*x.shape[:-2], len(layout.prefix) + len(sums), x.shape[-2]))
            for row, position in enumerate(layout.prefix_positions):
                weights[..., row, position] = 1.0
            patches = layout.patches_of(weights, -1)
            patches[..., len(layout.prefix) :, :] = 1.0
            unit = patches.select(-2, len(layout.prefix)) if "unit_patch_sum" in sums else None
            self._weights[key] = (weights, unit)
        return self._weights[key]

    def _stages(self, x_BTD: Tensor, parameters: NormParameters, before: TokenCell, after: TokenCell) -> NormCell:
        """Of a norm's input: what the norm computes per token, and the sums after each of its stages."""
        place, patches = self._places.place, self.layout.patches
        centred_BPD, mean_row = self.layout.patches_of(x_BTD), None
        if parameters.kind == "layer":
            mean_row, mean_BP = place("patch_mean", (patches,), x_BTD)
            torch.mean(centred_BPD, dim=-1, out=mean_BP)
            # Subtract, then square: E[x²] − μ² cancels where |μ| ≫ σ. torch.var is 20 times slower on CPU.
            scratch = self._workspace.like(centred_BPD, 0)
            centred_BPD = torch.sub(centred_BPD, mean_BP.unsqueeze(-1), out=scratch)
        weight = parameters.weight_patch
        stages = 1 if weight is None else 2
        lengths_row, lengths_BSP = place("patch_lengths", (stages, patches), x_BTD)
        torch.linalg.vector_norm(centred_BPD, dim=-1, out=lengths_BSP.select(-2, 0))
        if weight is not None:
            weighted_BPD = torch.mul(centred_BPD, weight.to(x_BTD.dtype), out=self._workspace.like(centred_BPD, 1))
            torch.linalg.vector_norm(weighted_BPD, dim=-1, out=lengths_BSP.select(-2, 1))
        sums_row, sums_BSD = place("stage_sums", (stages, x_BTD.shape[-1]), x_BTD)
        # Both sums in one pass: γ is the same for all patches and is applied to the sum.
        weighted_sums(lengths_BSP.reciprocal(), centred_BPD, sums_BSD)
        return NormCell(before, after, stages, mean_row, lengths_row, sums_row, parameters)
