"""Reduce activations inside forward hooks, without storing them."""

# Shapes: B images, T tokens, P patches, R prefix tokens, S stages of a norm, D channels, H heads, d channels per head.

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenlens.families import NormParameters, norm_parameters
from tokenlens.recording.attention import AttentionCall, as_float
from tokenlens.recording.capture import NormCall
from tokenlens.recording.recorder import PooledTokens
from tokenlens.reduction.buffers import Buffers, Slot
from tokenlens.reduction.kernels import ReductionKernels, TokenOutputs, compute_statistics
from tokenlens.reduction.pattern import WholePattern, sum_values
from tokenlens.reduction.summaries import (
    SAMPLED_PATCHES,
    AttentionSummary,
    BatchSummary,
    Fields,
    NormSummary,
    PatternReduction,
    PatternSummary,
    Reduction,
    SummaryType,
    TokenSummary,
    UpdateSummary,
    to_float64,
)
from tokenlens.tokens import HEAD_SITES, NORM_SITES, Key, Site, TokenLayout

_RESIDUALS = {Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST}
_LINEAR: tuple[Reduction, ...] = ("unit_patch_sum", "patch_sum")


class Reducer:
    """The ``Observer`` of ``analyze``: reduces each activation to a summary while its hook runs.

    Call ``start`` and ``end`` around each forward pass; ``collect`` returns the summaries of all passes since the last
    call.

    Args:
        layout: the model's tokens.
        wanted: the sums over patches to compute at each site.
        norm_stages: whether norms are followed stage by stage.
        updates: whether to compute inner products of updates and residuals.
        pattern: whether to compute the CLS row and the prefix columns of the attention pattern.
        raw: name, sites and function of each metric that is computed from the tokens, or the call of attention, itself.
        accumulate: sites and function of each metric that sums tokens of several images itself, given block and site,
            the indices of the images and the tokens.
        whole_pattern: reductions of every row of the attention pattern.
        cls_values: whether to sum the values over each token group, weighted by the attention of CLS.
        patch_sample: whether to copy some patches of norm1's input.
        kernels: the implementation of the reductions; by default torch operations.
        pool: number of images, at least, between two calls of ``collect``.
    """

    def __init__(
        self,
        layout: TokenLayout,
        wanted: Mapping[str, set[Reduction]],
        norm_stages: bool = True,
        updates: bool = True,
        pattern: bool = True,
        raw: Iterable[tuple[str, tuple[str, ...], Callable[..., Any]]] = (),
        accumulate: Iterable[tuple[tuple[str, ...], Callable[[Key, list[int], Tensor], None]]] = (),
        whole_pattern: Collection[PatternReduction] = (),
        patch_sample: bool = False,
        cls_values: bool = False,
        kernels: ReductionKernels | None = None,
        pool: int = 1,
    ) -> None:
        self.layout = layout
        self.wanted = wanted
        self.norm_stages = norm_stages
        self.updates = updates
        self.pattern = pattern
        self.raw = list(raw)
        self.cls_values = cls_values
        self.accumulate = list(accumulate)
        self.pool = pool
        # The same positions in every image, in an order of which any beginning is spread over the grid.
        positions = np.random.RandomState(0).permutation(layout.positions("patch"))[:SAMPLED_PATCHES]
        self._sampled = torch.from_numpy(positions) if patch_sample else None
        self._kernels = ReductionKernels(layout) if kernels is None else kernels
        self._whole_pattern = WholePattern(layout, whole_pattern)
        # Use the same sums at all token sites: several sites may be the same tensor, which is reduced once.
        everywhere = {name for site, names in wanted.items() if site not in HEAD_SITES for name in names}
        self._linear = tuple(name for name in _LINEAR if name in everywhere)
        self._magnitudes = {site for site, names in wanted.items() if "patch_abs_sum" in names}
        self._squares = {site for site, names in wanted.items() if "patch_square_sum" in names}
        if norm_stages and self._magnitudes & set(NORM_SITES):
            # A residual site is usually the input of a norm; asking there too lets one pass serve both.
            self._magnitudes |= _RESIDUALS
        self._buffers = Buffers()
        self._parameters: dict[int, NormParameters] = {}
        self._residual: Tensor | None = None
        # A residual is reduced together with the stages of the norm that reads it next.
        self._waiting: tuple[Tensor, int, TokenOutputs] | None = None
        self._recent: dict[int, tuple[weakref.ref[Tensor], int, Fields]] = {}
        self._forget()

    def _forget(self) -> None:
        self._indices: list[int] = []
        self._fields: dict[SummaryType, dict[Key, Fields]] = {}
        self._raw: dict[str, dict[Key, list[Mapping[tuple[str, str], Tensor]]]] = {}

    def has_room(self, images: int) -> bool:
        """Whether a pass of ``images`` images can start before ``collect``."""
        return not self._indices or len(self._indices) + images <= self._buffers.capacity

    def start(self, indices: list[int]) -> None:
        """Begin a forward pass of the images with these indices."""
        self._fields = {}
        self._residual = self._waiting = None
        self._recent.clear()
        self._whole_pattern.start()
        self._buffers.start(len(self._indices), len(indices), -(-self.pool // len(indices)) * len(indices))
        self._indices = self._indices + indices

    def end(self) -> None:
        """End a forward pass; nothing of the size of the tokens is held afterwards."""
        self._reduce_waiting()
        self._residual = None
        self._recent.clear()
        self._whole_pattern.end()
        self._buffers.end()

    @property
    def images(self) -> int:
        """Number of images waiting to be collected."""
        return len(self._indices)

    def collect(self) -> BatchSummary:
        """Return the summaries of all passes since the last call; read them before the next pass overwrites them."""
        raw: dict[str, dict[Key, Mapping[tuple[str, str], Tensor]]] = {
            name: {
                key: {label: torch.cat([part[label] for part in parts]) for label in parts[0]}
                for key, parts in by_key.items()
            }
            for name, by_key in self._raw.items()
        }
        batch = BatchSummary(self.layout, self._indices, self._fields, self._buffers, raw)
        self._forget()
        return batch

    # -- the Observer's methods

    def tokens(self, block: int | None, site: Site, x_BTD: Tensor) -> None:
        """Reduce the tokens of a site; those of an update together with its residual."""
        if self._waiting is not None and self._waiting[0] is not x_BTD:
            self._reduce_waiting()
        residual: Tensor | None = None
        if self.updates and site in (Site.RESID_PRE, Site.RESID_MID):
            # Held until the branch's update arrives; the block itself holds it as long.
            self._residual = x_BTD
        elif self.updates and site in (Site.ATTN_OUT, Site.MLP_OUT):
            residual, self._residual = self._residual, None
        if residual is None and self.norm_stages and site in _RESIDUALS:
            fields, outputs = self._outputs(x_BTD, site)
            if any(output is not None for output in outputs):
                self._reduce_waiting()
                self._waiting = x_BTD, x_BTD._version, outputs
        elif residual is None:
            fields = self._reduce(x_BTD, site)
        else:
            before = self._reduce(residual, site)
            slot, products_BT = self._buffers.next_slot("product", before["norms"].tail, x_BTD)
            fields = self._reduce(x_BTD, site, residual, products_BT)
            update = {"product": slot, "update_norms": fields["norms"], "residual_norms": before["norms"]}
            self._keep(UpdateSummary, (block, site), update)
        self._keep(TokenSummary, (block, site), fields)
        self._compute_raw((block, site), x_BTD)

    def norm(
        self,
        block: int | None,
        site: Site,
        module: nn.Module,
        x_BTD: Tensor,
        y_BTD: Tensor,
        call: NormCall | None = None,
    ) -> None:
        """Reduce a norm's output and, where wanted, its input and stages."""
        after, after_outputs = self._outputs(y_BTD, site)
        self._keep(TokenSummary, (block, site), after)
        self._compute_raw((block, site), y_BTD)
        if not self.norm_stages:
            self._kernels.reduce_tokens(y_BTD, self._linear, *after_outputs)
            return
        if id(module) not in self._parameters:
            self._parameters[id(module)] = norm_parameters(module)
        parameters = self._parameters[id(module)]
        before, before_outputs = self._outputs(x_BTD, site)
        if self._waiting is not None and self._waiting[0] is x_BTD and self._waiting[1] == x_BTD._version:
            waiting, self._waiting = self._waiting[2], None
            before_outputs = TokenOutputs(
                *(a if b is None else b for a, b in zip(waiting, before_outputs, strict=True))
            )
        self._reduce_waiting()
        stages, (mean_BT, rstd_BT, lengths_BSP, sums_BSD) = self._stage_slots(x_BTD, parameters)
        known = call is not None and (mean_BT is None) == (call.mean_BT is None)
        if call is None or not known:
            compute_statistics(x_BTD, parameters.eps, mean_BT, rstd_BT)
        else:
            rstd_BT.copy_(call.rstd_BT)
            if mean_BT is not None and call.mean_BT is not None:
                mean_BT.copy_(call.mean_BT)
        stages_and_tokens = (lengths_BSP, sums_BSD, self._linear, before_outputs, after_outputs)
        self._kernels.reduce_norm(x_BTD, y_BTD, parameters, mean_BT, rstd_BT if known else None, *stages_and_tokens)
        if self._sampled is not None and site == Site.NORM1:
            self._sampled = self._sampled.to(x_BTD.device)
            stages["patch_sample"] = self._copy("patch_sample", as_float(x_BTD.index_select(1, self._sampled)))
        self._keep(NormSummary, (block, site), {"input": before, "output": after, **stages})

    def attention(self, block: int, call: AttentionCall) -> None:
        """Reduce q, k and v per head, and the attention pattern."""
        for site, x in zip(HEAD_SITES, (call.q_BHTd, call.k_BHTd, call.v_BHTd), strict=True):
            if site in self.wanted and x.shape[-2] == self.layout.tokens:  # where only CLS attends, q is shorter
                sums = tuple(name for name in _LINEAR if name in self.wanted[site])
                fields, norms, rows = self._token_slots(x, sums)
                self._kernels.reduce_tokens(x, sums, norms, rows)
                self._keep(TokenSummary, (block, site), fields)
        if self.pattern:
            heads, like = call.q_BHTd.shape[1], call.q_BHTd
            fields, row_BHT, columns_BHR = {}, None, None
            if self.layout.has("cls"):
                fields["cls_row"], row_BHT = self._buffers.next_slot("cls_row", (heads, self.layout.tokens), like)
            if self.layout.prefix and call.q_BHTd.shape[-2] == self.layout.tokens:
                tail = (heads, len(self.layout.prefix))
                fields["patch_to_prefix"], columns_BHR = self._buffers.next_slot("patch_to_prefix", tail, like)
            self._kernels.reduce_attention(call, row_BHT, columns_BHR)
            bias_BHT = None if call.learned is None else call.bias_mass()
            if bias_BHT is not None:
                fields["bias_mass"] = self._copy("bias_mass", bias_BHT)
            if self.cls_values and row_BHT is not None:
                values_BHGd = sum_values(self.layout, row_BHT, call.v_BHTd)
                if call.learned is not None and bias_BHT is not None:
                    cls_BH11 = self.layout.mean_of(bias_BHT, "cls", -1)[..., None, None]
                    values_BHGd = torch.cat([values_BHGd, cls_BH11 * as_float(call.learned[1])], dim=-2)
                fields["cls_values"] = self._copy("cls_values", values_BHGd)
            self._keep(AttentionSummary, (block, "pattern"), fields)
        if self._whole_pattern.wanted:
            reduced = self._whole_pattern.reduce(block, call)
            fields = {name: self._copy(name, x) for name, x in reduced.items()}
            self._keep(PatternSummary, (block, "pattern"), fields)
        for name, sites, function in self.raw:
            if "pattern" in sites:
                self._raw.setdefault(name, {}).setdefault((block, "pattern"), []).append(
                    function(self.layout, block, call)
                )

    def pooled(self, pooled: PooledTokens) -> None:
        """Compute the metrics of the latent that pools the tokens."""
        for name, sites, function in self.raw:
            if Site.POOL in sites:
                self._raw.setdefault(name, {}).setdefault((None, str(Site.POOL)), []).append(
                    function(self.layout, pooled)
                )

    # -- reductions into buffers

    def _keep(self, kind: SummaryType, key: Key, fields: Fields) -> None:
        self._fields.setdefault(kind, {})[key] = fields

    def _copy(self, name: str, x: Tensor) -> Slot:
        """Copy a small tensor into its buffer."""
        slot, memory = self._buffers.next_slot(name, tuple(x.shape[1:]), x)
        memory.copy_(x)
        return slot

    def _compute_raw(self, key: Key, x: Tensor) -> None:
        for sites, add in self.accumulate:
            if key[1] in sites:
                add(key, self._indices[-len(x) :], x)
        for name, sites, function in self.raw:
            if key[1] in sites:
                self._raw.setdefault(name, {}).setdefault(key, []).append(function(self.layout, to_float64(x)))

    def _reduce(
        self, x: Tensor, site: Site, residual: Tensor | None = None, products_BT: Tensor | None = None
    ) -> Fields:
        """Reduce the tokens of a site, with the inner products with the residual where there is one."""
        fields, outputs = self._outputs(x, site)
        if products_BT is not None or any(output is not None for output in outputs):
            self._kernels.reduce_tokens(x, self._linear, *outputs, residual, products_BT)
        return fields

    def _reduce_waiting(self) -> None:
        """Reduce the residual that waits for its norm, if there is one: no norm has read it."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            x, version, outputs = waiting
            if x._version != version:
                raise ValueError("the model changed the residual stream in place where no norm had read it yet")
            self._kernels.reduce_tokens(x, self._linear, *outputs)

    def _outputs(self, x: Tensor, site: Site) -> tuple[Fields, TokenOutputs]:
        """Return the slots of a site's tokens, and where to write what is not there yet.

        A tensor is reduced once for all sites it stands for (a block's output is the next one's input).
        """
        known = self._recent.get(id(x))
        norms = rows = magnitudes_BD = None
        if known is not None and known[0]() is x and known[1] == x._version:
            fields = known[2]
        else:
            fields, norms, rows = self._token_slots(x, self._linear)
            self._recent.pop(id(x), None)  # the id of a tensor that is gone; entries stay in order of age
            if len(self._recent) > 4:
                self._recent.pop(next(iter(self._recent)))
            self._recent[id(x)] = (weakref.ref(x), x._version, fields)
        if "patch_abs_sum" not in fields and site in self._magnitudes:
            fields["patch_abs_sum"], magnitudes_BD = self._buffers.next_slot("patch_abs_sum", (x.shape[-1],), x)
        if "patch_square_sum" not in fields and site in self._squares:
            fields["patch_square_sum"], squares_BD = self._buffers.next_slot("patch_square_sum", (x.shape[-1],), x)
            torch.sum(as_float(self.layout.patches_of(x)).square(), dim=-2, out=squares_BD)
        return fields, TokenOutputs(norms, rows, magnitudes_BD)

    def _token_slots(self, x: Tensor, sums: tuple[Reduction, ...]) -> tuple[Fields, Tensor, Tensor]:
        """Return the slots of norms, prefix tokens and sums of tokens (B, T, D) or (B, H, T, d), and their memory."""
        *heads, tokens, channels = x.shape[1:]
        norms_slot, norms = self._buffers.next_slot("norms", (*heads, tokens), x)
        rows_slot, rows = self._buffers.next_slot("rows", (*heads, len(self.layout.prefix) + len(sums), channels), x)
        return {"rows": rows_slot, "norms": norms_slot, "sums": sums}, norms, rows

    def _stage_slots(
        self, x_BTD: Tensor, parameters: NormParameters
    ) -> tuple[Fields, tuple[Tensor | None, Tensor, Tensor, Tensor]]:
        """Return the slots of a norm's statistics and stages, and their memory: mean, 1/σ, lengths and sums."""
        next_slot, patches = self._buffers.next_slot, self.layout.patches
        fields: Fields = {"parameters": parameters}
        mean_BT = None
        if parameters.kind == "layer":
            fields["mean"], mean_BT = next_slot("mean", (self.layout.tokens,), x_BTD)
        fields["rstd"], rstd_BT = next_slot("rstd", (self.layout.tokens,), x_BTD)
        stages = 1 if parameters.weight_patch is None else 2
        fields["patch_lengths"], lengths_BSP = next_slot("patch_lengths", (stages, patches), x_BTD)
        fields["stage_sums"], sums_BSD = next_slot("stage_sums", (stages, x_BTD.shape[-1]), x_BTD)
        return fields, (mean_BT, rstd_BT, lengths_BSP, sums_BSD)
