"""What is kept of a tensor when its hook ends: a few sums over its tokens, from which the metrics are computed.

The sums are taken on the device, in one pass each; the small results of all blocks are stacked once a batch and turned
into float64 there, so that the metrics cost a few operations a batch and not a few operations a site.
"""

# Shapes: N cells (block, site), B images, T tokens, P patches, R prefix tokens, D channels, H heads, d channels a head.
# "..." stands for (B,), (B, H), and in stacked summaries (N, B), (N, B, H).

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from tokenlens.attention import AttentionCall, as_float
from tokenlens.families import NormParameters, norm_parameters
from tokenlens.recording import HEAD_SITES, Key, Site
from tokenlens.tokens import TokenLayout, take

Reduction = Literal["unit_patch_sum", "patch_sum", "patch_abs_sum"]
"""Sums over patches that a metric can ask for; the prefix tokens and every token's norm are always kept."""


_LINEAR: tuple[Reduction, ...] = ("unit_patch_sum", "patch_sum")


def precise(x: Tensor) -> Tensor:
    """``x`` in float64, or in float32 on devices that have no float64."""
    return x.float() if x.device.type == "mps" else x.double()


def _weighted_sums(weights: Tensor, patches: Tensor) -> Tensor:
    """Σ_i w_ki·x_i for K sets of weights: (..., K, P) and (..., P, D) give (..., K, D)."""
    if torch.get_float32_matmul_precision() == "highest":
        return torch.matmul(weights, patches)
    # The user lets matrix products run in TF32 or bfloat16; these sums must not.
    return torch.stack([(row.unsqueeze(-1) * patches).sum(-2) for row in weights.unbind(-2)], dim=-2)


class Shelf:
    """Where the hooks put what outlives them, laid out before the forward pass begins.

    On the CPU, small tensors that stay behind among the model's large temporary ones break up the memory that these
    would otherwise use again and again: each block then writes to memory that is in no cache. On ViT-S that made GELU
    alone four times slower, more than all sums together cost. So the places are made before the forward pass, from what
    the previous one needed, and the hooks copy into them. On other devices the allocator has no such trouble.
    """

    def __init__(self) -> None:
        self._needed: list[tuple[tuple[int, ...], torch.dtype]] = []
        self._places: list[Tensor] = []
        self._next = 0
        self._batch = 0
        self._weights: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def lay_out(self, batch: int) -> None:
        """Get ready for a forward pass of ``batch`` images: the places of the last one again, or new ones."""
        if batch != self._batch or self._next < len(self._needed):
            self._places = [torch.empty(0)] * len(self._needed)
            for wanted in {dtype for _, dtype in self._needed}:
                chosen = [index for index, (_, dtype) in enumerate(self._needed) if dtype == wanted]
                sizes = [batch * math.prod(self._needed[index][0]) for index in chosen]
                buffer = torch.empty(sum(sizes), dtype=wanted)
                for index, place in zip(chosen, buffer.split(sizes), strict=True):
                    self._places[index] = place.view(batch, *self._needed[index][0])
        self._needed, self._next, self._batch = [], 0, batch

    def place(self, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        """The place for a tensor of this shape, images first, for an operation's ``out``; None if there is none."""
        if like.device.type != "cpu":
            return None
        self._needed.append((tuple(shape[1:]), like.dtype))
        if self._next < len(self._places):
            place = self._places[self._next]
            if place.shape == shape and place.dtype == like.dtype:
                self._next += 1
                return place
        return None

    def weights(self, norms: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Weights (..., rows, P) that are 1 but for the first row, and that row; for use before the next call."""
        if norms.device.type != "cpu":
            ones = norms.new_ones((*norms.shape[:-1], rows, norms.shape[-1]))
            return ones, ones.select(-2, 0)
        key = (*norms.shape, rows)
        if key not in self._weights or self._weights[key][0].dtype != norms.dtype:
            ones = norms.new_ones((*norms.shape[:-1], rows, norms.shape[-1]))
            self._weights[key] = (ones, ones.select(-2, 0))
        return self._weights[key]

    def keep(self, x: Tensor) -> Tensor:
        """A tensor with the values of ``x``, a fresh temporary, that may stay."""
        place = self.place(x.shape, x)
        return x if place is None else place.copy_(x)


@dataclass
class TokenSummary:
    """Of the tokens at one site: the prefix tokens, every token's norm, and sums over the patches.

    Attributes:
        rows: (..., R + K, D), the R prefix tokens themselves in layout order, then K sums over patches.
        sums: what the K sums are.
        norms: (..., T), Euclidean norm of every token.
        patch_abs_sum: (..., D), Σ_i |x_i| over patches.
    """

    layout: TokenLayout
    rows: Tensor
    sums: tuple[str, ...]
    norms: Tensor
    patch_abs_sum: Tensor | None = None

    def add(self, x: Tensor, wanted: Iterable[Reduction], shelf: Shelf) -> None:
        """Compute the wanted sums of ``x`` that are not there yet."""
        linear = tuple(name for name in _LINEAR if name in wanted and name not in self.sums)
        if linear:
            extended = [self.rows, _sums(x, self.norms, self.layout, linear, shelf)]
            self.rows, self.sums = torch.cat(extended, dim=-2), self.sums + linear
        if self.patch_abs_sum is None and "patch_abs_sum" in wanted:
            magnitudes = self.layout.patches_of(x).abs()
            place = shelf.place((*x.shape[:-2], x.shape[-1]), x)
            self.patch_abs_sum = torch.sum(magnitudes, dim=-2, out=place)

    @cached_property
    def prefix(self) -> Tensor:
        """The prefix tokens, (..., R, D)."""
        return self.rows.narrow(-2, 0, len(self.layout.prefix))

    def _sum(self, name: Reduction) -> Tensor | None:
        if name not in self.sums:
            return None
        return self.rows.select(-2, len(self.layout.prefix) + self.sums.index(name))

    @property
    def unit_patch_sum(self) -> Tensor | None:
        """Σ_i x_i/‖x_i‖ over patches, (..., D); None if it was not wanted."""
        return self._sum("unit_patch_sum")

    @property
    def patch_sum(self) -> Tensor | None:
        """Σ_i x_i over patches, (..., D); None if it was not wanted."""
        return self._sum("patch_sum")

    @property
    def patches(self) -> int:
        """Number of patch tokens."""
        return self.layout.patches

    def group(self, group: str) -> Tensor:
        """The tokens of a prefix group, (..., R_group, D)."""
        return take(self.prefix, self.layout.prefix_index(group), -2)

    def unit_group(self, group: str) -> Tensor:
        """The same, each divided by its norm."""
        return take(self.unit_prefix, self.layout.prefix_index(group), -2)

    @cached_property
    def unit_prefix(self) -> Tensor:
        """All prefix tokens divided by their norms, (..., R, D)."""
        return self.prefix / torch.linalg.vector_norm(self.prefix, dim=-1, keepdim=True)

    def norms_of(self, group: str) -> Tensor:
        """Norms of one group's tokens, (..., tokens of the group)."""
        if group == "patch":
            return self.layout.patches_of(self.norms, -1)
        return take(self.norms, self.layout.positions(group), -1)


def _sums(x: Tensor, norms: Tensor, layout: TokenLayout, names: tuple[str, ...], shelf: Shelf) -> Tensor:
    """Sums over patches, (..., K, D), in one pass: a batched product with one row of weights for each."""
    patch_norms = layout.patches_of(norms, -1)
    weights, first = shelf.weights(patch_norms, len(names))
    if names[0] == "unit_patch_sum":
        torch.reciprocal(patch_norms, out=first)
    else:
        first.fill_(1.0)
    return _weighted_sums(weights, layout.patches_of(x))


def summarize(x: Tensor, layout: TokenLayout, wanted: Iterable[Reduction], shelf: Shelf) -> TokenSummary:
    """The summary of tokens (..., T, D)."""
    norms = torch.linalg.vector_norm(x, dim=-1, out=shelf.place(x.shape[:-1], x))
    linear = tuple(name for name in _LINEAR if name in wanted)
    parts = [layout.prefix_of(x)]
    if linear:
        parts.append(_sums(x, norms, layout, linear, shelf))
    place = shelf.place((*x.shape[:-2], len(layout.prefix) + len(linear), x.shape[-1]), x)
    rows = torch.cat(parts, dim=-2, out=place)
    summary = TokenSummary(layout, rows, linear, norms)
    summary.add(x, wanted, shelf)
    return summary


@dataclass
class NormSummary:
    """Of one norm: its tokens before and after, what it computes per token, and the stages between.

    Attributes:
        input, output: the tokens before and after.
        patch_mean: (..., P), the mean that a LayerNorm subtracts; None for RMSNorm.
        patch_variance: (..., P), the variance that it divides by the root of (mean square for RMSNorm), without ε.
        centred_patch_sum: (..., D), Σ_i of the unit vectors of x_i − μ_i.
        weighted_patch_sum: (..., D), Σ_i of the unit vectors of γ⊙(x_i − μ_i).
        weight_prefix, weight_patch: (..., D), γ for prefix tokens and patches; None if the norm has none.
    """

    kind: str
    input: TokenSummary
    output: TokenSummary
    patch_mean: Tensor | None
    patch_variance: Tensor
    centred_patch_sum: Tensor
    weighted_patch_sum: Tensor
    weight_prefix: Tensor | None
    weight_patch: Tensor | None
    has_bias: bool

    @property
    def layout(self) -> TokenLayout:
        """The token layout."""
        return self.input.layout

    @cached_property
    def centred_prefix(self) -> Tensor:
        """Prefix tokens minus their mean (RMSNorm: as they are), (..., R, D)."""
        prefix = self.input.prefix
        return prefix - prefix.mean(-1, keepdim=True) if self.kind == "layer" else prefix

    @cached_property
    def weighted_prefix(self) -> Tensor:
        """γ⊙(x − μ) of the prefix tokens, (..., R, D)."""
        if self.weight_prefix is None:
            return self.centred_prefix
        return self.centred_prefix * self.weight_prefix.unsqueeze(-2).unsqueeze(-2)


def summarize_norm(
    x_BTD: Tensor, parameters: NormParameters, before: TokenSummary, after: TokenSummary, shelf: Shelf
) -> NormSummary:
    """The summary of a norm's input (B, T, D), given the summaries of its input and output tokens."""
    layout = before.layout
    centred_BPD = layout.patches_of(x_BTD)
    patch_mean = None
    if parameters.kind == "layer":
        mean_BP1 = centred_BPD.mean(-1, keepdim=True)
        # Subtract, then square: E[x²] − μ² cancels where |μ| ≫ σ. torch.var is 20 times slower on CPU.
        centred_BPD = centred_BPD - mean_BP1
        patch_mean = shelf.keep(mean_BP1.squeeze(-1))
    length_BP = torch.linalg.vector_norm(centred_BPD, dim=-1)
    lengths, weight = [length_BP], parameters.weight_patch
    if weight is not None:
        lengths.append(torch.linalg.vector_norm(centred_BPD * weight.to(centred_BPD.dtype), dim=-1))
    # Both sums in one pass: γ is the same for all patches and can be applied to the sum.
    sums_BKD = _weighted_sums(torch.stack(lengths, dim=-2).reciprocal_(), centred_BPD)
    centred_sum = shelf.keep(sums_BKD.select(-2, 0))
    weighted_sum = centred_sum
    if weight is not None:
        weighted_sum = shelf.keep(sums_BKD.select(-2, 1) * weight.to(centred_BPD.dtype))
    return NormSummary(
        kind=parameters.kind,
        input=before,
        output=after,
        patch_mean=patch_mean,
        patch_variance=shelf.keep(length_BP.square() / x_BTD.shape[-1]),
        centred_patch_sum=centred_sum,
        weighted_patch_sum=weighted_sum,
        weight_prefix=parameters.weight_prefix,
        weight_patch=weight,
        has_bias=parameters.bias_patch is not None,
    )


@dataclass
class AttentionSummary:
    """Of one block's attention.

    Attributes:
        cls_row: (..., H, T), how CLS attends to every token; None without CLS.
        patch_to_prefix: (..., H, R), how patches attend to each prefix token, mean over patches; None without prefix.
    """

    layout: TokenLayout
    cls_row: Tensor | None
    patch_to_prefix: Tensor | None


@dataclass
class UpdateSummary:
    """Of what a branch adds to the residual.

    Attributes:
        product: (..., T), inner product of update and residual, token by token.
        update_norms, residual_norms: (..., T).
    """

    layout: TokenLayout
    product: Tensor
    update_norms: Tensor
    residual_norms: Tensor


S = TypeVar("S", TokenSummary, NormSummary, AttentionSummary, UpdateSummary)
Kind = type[TokenSummary] | type[NormSummary] | type[AttentionSummary] | type[UpdateSummary]


_CONSTANTS = ("weight_prefix", "weight_patch")
"""Fields without an axis of images."""
_VECTORS = ("rows", "patch_abs_sum", "centred_patch_sum", "weighted_patch_sum")
"""Fields that stay in float32, since sums over channels of their products do; they are half of all memory."""


def _signature(summary: Any) -> tuple[Any, ...]:
    """What must be equal for cells to be stacked."""
    parts: list[Any] = []
    for item in fields(summary):
        value = getattr(summary, item.name)
        if item.name == "patch_abs_sum":
            continue  # left out where not all have it: it may be there only because another site shares the tensor
        if isinstance(value, Tensor):
            parts.append(tuple(value.shape))
        else:
            parts.append(_signature(value) if isinstance(value, TokenSummary) else value)
    return tuple(parts)


def _combine(summaries: list[S], tensors: Callable[[str, list[Tensor]], Tensor]) -> S:
    """One summary from several: each field's tensors go through ``tensors(name of the field, tensors)``."""
    changes: dict[str, Any] = {}
    for item in fields(summaries[0]):
        values = [getattr(summary, item.name) for summary in summaries]
        if isinstance(values[0], TokenSummary):
            changes[item.name] = _combine(values, tensors)
        elif any(value is None for value in values):
            changes[item.name] = None
        elif isinstance(values[0], Tensor):
            changes[item.name] = tensors(item.name, values)
    return replace(summaries[0], **changes)


@dataclass
class Stack:
    """Cells of equal shape and their summary, with a first axis of cells."""

    keys: list[Key]
    summary: Any


def _stacks(cells: Mapping[Key, Any], together: list[list[Key]]) -> list[Stack]:
    """The summaries of many cells as few, one for each distinct shape; ``together`` is how it was in the last batch."""
    if set(cells) != {key for keys in together for key in keys}:
        alike: dict[Any, list[Key]] = {}
        for key, summary in cells.items():
            alike.setdefault(_signature(summary), []).append(key)
        together = list(alike.values())
    return [Stack(keys, _combine([cells[key] for key in keys], lambda _, x: torch.stack(x))) for keys in together]


@dataclass
class BatchSummary:
    """All that one or several forward passes left behind.

    Attributes:
        indices: each image's index in the image source.
        kinds: the stacked summaries by kind.
        raw: results of the metrics that looked at the tokens themselves, by metric and (block, site).
    """

    indices: list[int]
    kinds: dict[Kind, list[Stack]] = field(default_factory=dict)
    raw: dict[str, dict[Key, Mapping[tuple[str, str], Tensor]]] = field(default_factory=dict)
    _parts: dict[tuple[Kind, tuple[str, ...]], list[Stack]] = field(default_factory=dict)

    def stacks(self, kind: Kind, sites: Iterable[str]) -> list[Stack]:
        """Stacked summaries of one kind at some sites, one for each distinct shape; selected once."""
        chosen = tuple(sites)
        if (kind, chosen) not in self._parts:
            found = []
            for cells in self.kinds.get(kind, ()):
                rows = [row for row, (_, site) in enumerate(cells.keys) if site in chosen]
                if len(rows) == len(cells.keys):
                    found.append(cells)
                elif rows:
                    part = _combine([cells.summary], lambda _, values, rows=rows: values[0][rows])  # type: ignore[misc]
                    found.append(Stack([cells.keys[row] for row in rows], part))
            self._parts[kind, chosen] = found
        return self._parts[kind, chosen]


def pool(batches: list[BatchSummary]) -> BatchSummary:
    """Several batches as one: the metrics then cost their few operations once for all of them."""

    def join(name: str, values: list[Tensor]) -> Tensor:
        joined = values[0] if name in _CONSTANTS or len(values) == 1 else torch.cat(values, dim=1)
        return joined if name in _VECTORS else precise(joined)

    kinds: dict[Kind, list[Stack]] = {}
    for kind in batches[0].kinds:
        parts = zip(*(batch.kinds[kind] for batch in batches), strict=True)
        for same in parts:
            assert all(cells.keys == same[0].keys for cells in same), "every forward pass shows the same cells"
            kinds.setdefault(kind, []).append(Stack(same[0].keys, _combine([c.summary for c in same], join)))
    raw: dict[str, dict[Key, Mapping[tuple[str, str], Tensor]]] = {}
    for name, cells in batches[0].raw.items():
        raw[name] = {
            key: {label: torch.cat([batch.raw[name][key][label] for batch in batches]) for label in values}
            for key, values in cells.items()
        }
    return BatchSummary([index for batch in batches for index in batch.indices], kinds, raw)


class Summarizer:
    """The observer of ``analyze``: turns what passes into summaries and lets go of it.

    Args:
        layout: the model's tokens.
        wanted: the sums over patches to take at each site.
        norm_stages: whether norms are followed stage by stage.
        updates: whether the inner products of updates and residuals are taken.
        pattern: whether the CLS row and the prefix columns of the pattern are taken.
        raw: for each metric that looks at the tokens themselves, its name, sites and function.
    """

    def __init__(
        self,
        layout: TokenLayout,
        wanted: Mapping[str, set[Reduction]],
        norm_stages: bool = True,
        updates: bool = True,
        pattern: bool = True,
        raw: Iterable[tuple[str, tuple[str, ...], Callable[[TokenLayout, Tensor], Any]]] = (),
    ) -> None:
        self.layout = layout
        self.wanted = wanted
        self.norm_stages = norm_stages
        self.updates = updates
        self.pattern = pattern
        self.raw = list(raw)
        self._indices: list[int] = []
        self._cells: dict[Kind, dict[Key, Any]] = {}
        self._seen: dict[str, dict[Key, Mapping[tuple[str, str], Tensor]]] = {}
        self._residual: Tensor | None = None
        self._recent: dict[int, tuple[weakref.ref[Tensor], int, TokenSummary]] = {}
        self._parameters: dict[int, NormParameters] = {}
        self._shelf = Shelf()
        self._together: dict[Kind, list[list[Key]]] = {}

    def start(self, indices: list[int]) -> None:
        """Begin a new batch."""
        self._indices, self._cells, self._seen = indices, {}, {}
        self._residual = None
        self._recent.clear()
        self._shelf.lay_out(len(indices))

    def finish(self) -> BatchSummary:
        """What the batch left behind; nothing of it is held here any more."""
        kinds = {kind: _stacks(cells, self._together.get(kind, [])) for kind, cells in self._cells.items()}
        self._together = {kind: [stack.keys for stack in stacks] for kind, stacks in kinds.items()}
        batch = BatchSummary(self._indices, kinds, self._seen)
        self._indices, self._cells, self._seen = [], {}, {}
        self._recent.clear()
        return batch

    def _summary(self, x: Tensor, wanted: Iterable[Reduction]) -> TokenSummary:
        """The summary of a tensor, taken once for all sites it stands for: a block's output is the next's input."""
        known = self._recent.get(id(x))
        if known is not None and known[0]() is x and known[1] == x._version:
            summary = known[2]
            summary.add(as_float(x), wanted, self._shelf)
            return summary
        summary = summarize(as_float(x), self.layout, wanted, self._shelf)
        if len(self._recent) > 4:
            self._recent.pop(next(iter(self._recent)))
        self._recent[id(x)] = (weakref.ref(x), x._version, summary)
        return summary

    def _put(self, kind: Kind, key: Key, summary: Any) -> None:
        self._cells.setdefault(kind, {})[key] = summary

    def _look(self, key: Key, x: Tensor) -> None:
        for name, sites, function in self.raw:
            if key[1] in sites:
                self._seen.setdefault(name, {})[key] = function(self.layout, precise(x))

    def tokens(self, block: int | None, site: Site, x_BTD: Tensor) -> None:
        """Summarize a site; with its residual, if it is an update."""
        summary = self._summary(x_BTD, self.wanted.get(site, ()))
        self._put(TokenSummary, (block, site), summary)
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
            product = self._shelf.keep(torch.linalg.vecdot(as_float(x_BTD), as_float(residual)))
            norms = self._summary(residual, ()).norms
            self._put(UpdateSummary, (block, site), UpdateSummary(self.layout, product, summary.norms, norms))

    def norm(self, block: int | None, site: Site, module: nn.Module, x_BTD: Tensor, y_BTD: Tensor) -> None:
        """Summarize a norm's output and, where wanted, its input and stages."""
        after = self._summary(y_BTD, self.wanted.get(site, ()))
        self._put(TokenSummary, (block, site), after)
        self._look((block, site), y_BTD)
        if self.norm_stages:
            if id(module) not in self._parameters:
                self._parameters[id(module)] = norm_parameters(module)
            before = self._summary(x_BTD, self.wanted.get(site, ()))
            stages = summarize_norm(as_float(x_BTD), self._parameters[id(module)], before, after, self._shelf)
            self._put(NormSummary, (block, site), stages)

    def attention(self, block: int, call: AttentionCall) -> None:
        """Summarize q, k and v per head, the CLS row and the columns of the prefix tokens."""
        for site, x in zip(HEAD_SITES, (call.q_BHTd, call.k_BHTd, call.v_BHTd), strict=True):
            if site in self.wanted:
                summary = summarize(as_float(x), self.layout, self.wanted[site], self._shelf)
                self._put(TokenSummary, (block, site), summary)
        if self.pattern:
            row = columns = None
            if self.layout.has("cls"):
                row = self._shelf.keep(call.rows(self.layout.positions("cls")).squeeze(-2))
            if self.layout.prefix:
                columns = self.layout.patches_of(call.columns(self.layout.prefix_positions)).mean(-2)
                columns = self._shelf.keep(columns)
            self._put(AttentionSummary, (block, "pattern"), AttentionSummary(self.layout, row, columns))
