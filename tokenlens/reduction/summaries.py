"""Summaries of activations: the few sums over tokens that are kept, and from which metrics are computed.

Metrics get the summaries of one type for all blocks and sites at once, stacked along a first axis, so that they run a
few operations per batch and not per site. ``tokenlens.reduction.reducer`` fills the buffers that they are read from.
"""

# Shapes: N stacked summaries, B images, T tokens, P patches, R prefix tokens, K sums over patches, S stages of a norm,
# D channels, H heads, d channels per head. "..." stands for (N, B), and for (N, B, H) at q, k and v.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from tokenlens.families import NormParameters
from tokenlens.reduction.buffers import Buffers, Slot, select_rows
from tokenlens.tokens import Key, TokenLayout, take

Reduction = Literal["unit_patch_sum", "patch_sum", "patch_abs_sum", "patch_square_sum"]
"""Sums over patches that a metric can ask for; prefix tokens and the norms of all tokens are always kept."""

PatternReduction = Literal["rollout", "patch_distance"]
"""Reductions of the whole attention pattern that a metric can ask for; they cost a pass over every row of it."""

SAMPLED_PATCHES = 8
"""Number of patches of each image in ``NormSummary.patch_sample``."""


def to_float64(x: Tensor) -> Tensor:
    """Convert to float64, or to float32 on devices without float64."""
    return x.float() if x.device.type == "mps" else x.double()


@dataclass
class TokenSummary:
    """The tokens at one site: the prefix tokens, the norm of every token, and sums over the patches.

    Attributes:
        rows: (..., R + K, D), the R prefix tokens in layout order, then K sums over patches.
        sums: the names of these K sums.
        norms: (..., T), Euclidean norm of every token.
        patch_abs_sum: (..., D), Σ_i |x_i| over patches; None if no metric asked for it.
        patch_square_sum: (..., D), Σ_i x_i² over patches; None if no metric asked for it.
    """

    layout: TokenLayout
    rows: Tensor
    sums: tuple[str, ...]
    norms: Tensor
    patch_abs_sum: Tensor | None = None
    patch_square_sum: Tensor | None = None

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
        """Σ_i x_i/‖x_i‖ over patches, (..., D); None if no metric asked for it."""
        return self._sum("unit_patch_sum")

    @property
    def patch_sum(self) -> Tensor | None:
        """Σ_i x_i over patches, (..., D); None if no metric asked for it."""
        return self._sum("patch_sum")

    @property
    def patches(self) -> int:
        """Number of patch tokens."""
        return self.layout.patches

    def group(self, group: str) -> Tensor:
        """Return the tokens of a prefix group, (..., R_group, D)."""
        return take(self.prefix, self.layout.prefix_index(group), -2)

    def unit_group(self, group: str) -> Tensor:
        """Return the tokens of a prefix group, each divided by its norm, (..., R_group, D)."""
        return take(self.unit_prefix, self.layout.prefix_index(group), -2)

    @cached_property
    def unit_prefix(self) -> Tensor:
        """All prefix tokens, each divided by its norm, (..., R, D)."""
        return self.prefix / torch.linalg.vector_norm(self.prefix, dim=-1, keepdim=True)

    def norms_of(self, group: str) -> Tensor:
        """Return the norms of one group's tokens, (..., tokens of the group)."""
        if group == "patch":
            return self.layout.patches_of(self.norms, -1)
        return take(self.norms, self.layout.positions(group), -1)


@dataclass
class NormSummary:
    """One norm: its tokens before and after, the statistics it computes per token, and its intermediate stages.

    Attributes:
        input, output: the tokens before and after.
        rstd: (..., T), 1/σ of every token, with ε in it.
        patch_lengths: (..., S, P), ‖x_i − μ_i‖ and, if the norm has a γ, ‖γ⊙(x_i − μ_i)‖.
        stage_sums: (..., S, D), Σ_i (x_i − μ_i) divided by each of these lengths.
        parameters: the parameters of the N norms, which are of one kind and have the same ones.
        mean: (..., T), the mean that a LayerNorm subtracts; None for RMSNorm.
        patch_sample: (..., K, D), some patches of the input, at places chosen once; None if no metric asked for them.
    """

    layout: TokenLayout
    input: TokenSummary
    output: TokenSummary
    rstd: Tensor
    patch_lengths: Tensor
    stage_sums: Tensor
    parameters: Sequence[NormParameters]
    mean: Tensor | None = None
    patch_sample: Tensor | None = None

    @property
    def kind(self) -> str:
        """``"layer"`` or ``"rms"``."""
        return self.parameters[0].kind

    @property
    def has_bias(self) -> bool:
        """Whether the norms have a β."""
        return self.parameters[0].bias_patch is not None

    @property
    def specialized(self) -> tuple[bool, ...]:
        """Whether each of the N norms has separate weights for prefix tokens and patches."""
        return tuple(norm.specialized for norm in self.parameters)

    def _stack(self, name: str) -> Tensor | None:
        values = [getattr(norm, name) for norm in self.parameters]
        return None if values[0] is None else torch.stack(values).to(self.stage_sums.dtype).unsqueeze(1)

    @cached_property
    def weight_prefix(self) -> Tensor | None:
        """γ of the prefix tokens, (N, 1, D); None if the norm has none."""
        return self._stack("weight_prefix")

    @cached_property
    def weight_patch(self) -> Tensor | None:
        """γ of the patches, (N, 1, D); None if the norm has none."""
        return self._stack("weight_patch")

    @cached_property
    def bias_prefix(self) -> Tensor | None:
        """β of the prefix tokens, (N, 1, D); None if the norm has none."""
        return self._stack("bias_prefix")

    @cached_property
    def bias_patch(self) -> Tensor | None:
        """β of the patches, (N, 1, D); None if the norm has none."""
        return self._stack("bias_patch")

    @cached_property
    def eps(self) -> Tensor:
        """ε, which is added to the variance, (N,)."""
        return self.stage_sums.new_tensor([norm.eps for norm in self.parameters])

    @property
    def patch_mean(self) -> Tensor | None:
        """The mean that a LayerNorm subtracts from each patch, (..., P); None for RMSNorm."""
        return None if self.mean is None else self.layout.patches_of(self.mean, -1)

    @cached_property
    def patch_variance(self) -> Tensor:
        """Variance of each patch over channels (mean square for RMSNorm), without ε, (..., P)."""
        return self.patch_lengths.select(-2, 0).square() / self.stage_sums.shape[-1]

    @property
    def centred_patch_sum(self) -> Tensor:
        """Sum over patches of the unit vectors of x_i − μ_i, (..., D)."""
        return self.stage_sums.select(-2, 0)

    @cached_property
    def weighted_patch_sum(self) -> Tensor:
        """Sum over patches of the unit vectors of γ⊙(x_i − μ_i), (..., D)."""
        if self.weight_patch is None:
            return self.centred_patch_sum
        return self.stage_sums.select(-2, 1) * self.weight_patch  # γ is the same for all patches

    @cached_property
    def centred_prefix(self) -> Tensor:
        """Prefix tokens minus their mean (unchanged for RMSNorm), (..., R, D)."""
        prefix = self.input.prefix
        return prefix - prefix.mean(-1, keepdim=True) if self.kind == "layer" else prefix

    @cached_property
    def weighted_prefix(self) -> Tensor:
        """γ⊙(x − μ) of the prefix tokens, (..., R, D)."""
        if self.weight_prefix is None:
            return self.centred_prefix
        return self.centred_prefix * self.weight_prefix.unsqueeze(-2)


@dataclass
class AttentionSummary:
    """The attention of one block.

    Attributes:
        cls_row: (..., H, T), attention of CLS to every token, mean over class tokens; None without CLS.
        patch_to_prefix: (..., H, R), mean over patches of their attention to each prefix token; None without any.
        cls_values: (..., H, G, d), Σ_j a_j·v_j over the tokens of each of the layout's G groups, with a the CLS row,
            and over the attention bias if there is one; None if no metric asked for it.
        bias_mass: (..., H, T), attention of every token to the attention bias; None without one.
    """

    layout: TokenLayout
    cls_row: Tensor | None = None
    patch_to_prefix: Tensor | None = None
    cls_values: Tensor | None = None
    bias_mass: Tensor | None = None


@dataclass
class PatternSummary:
    """Reductions of the whole attention pattern of one block; None if no metric asked for them.

    Attributes:
        cls_rollout: (..., T), the CLS row of the rollout up to and including this block.
        patch_distance: (..., H), mean over patches of their ``attention_distances``, in patches.
    """

    layout: TokenLayout
    cls_rollout: Tensor | None = None
    patch_distance: Tensor | None = None


@dataclass
class UpdateSummary:
    """The update that one branch adds to the residual stream.

    Attributes:
        product: (..., T), inner product of update and residual for each token.
        update_norms, residual_norms: (..., T), Euclidean norms.
    """

    layout: TokenLayout
    product: Tensor
    update_norms: Tensor
    residual_norms: Tensor


SummaryType = (
    type[TokenSummary] | type[NormSummary] | type[AttentionSummary] | type[PatternSummary] | type[UpdateSummary]
)

Fields = dict[str, Any]
"""The fields of one summary except its layout: a ``Slot``, the ``Fields`` of a TokenSummary, or a constant."""


def _shape_of(fields: Fields) -> tuple[Any, ...]:
    """Return what must be equal for two summaries to be stacked."""
    shape: list[Any] = []
    for name, value in fields.items():
        if isinstance(value, dict):
            shape.append(_shape_of(value))
        elif isinstance(value, NormParameters):
            shape.append((value.kind, value.weight_prefix is None, value.weight_patch is None))
            shape.append((value.bias_prefix is None, value.bias_patch is None))
        # These sums are sometimes there only because another site has the same tensor; the sample is of one norm only.
        elif name not in ("patch_abs_sum", "patch_square_sum", "patch_sample"):
            shape.append(value[:2] if isinstance(value, Slot) else value)
    return tuple(shape)


@dataclass
class Stack:
    """Summaries of equal shape for some blocks and sites.

    Attributes:
        keys: the (block, site) pairs.
        rows: for each key its index in ``summary``; sites that are the same tensor share one.
        summary: the stacked summary.
    """

    keys: list[Key]
    rows: list[int]
    summary: Any

    @cached_property
    def shared(self) -> bool:
        """Whether some keys share a row."""
        return self.rows != list(range(len(self.keys)))


@dataclass
class BatchSummary:
    """The summaries of all images of one or several forward passes.

    Attributes:
        layout: the token layout.
        indices: each image's index in the image source.
        fields: for each type of summary and (block, site), its fields.
        buffers: hold the tensors that ``fields`` point into.
        raw: results of metrics that are computed from the tokens themselves, by metric and (block, site).
    """

    layout: TokenLayout
    indices: list[int]
    fields: Mapping[SummaryType, Mapping[Key, Fields]]
    buffers: Buffers
    raw: dict[str, dict[Key, Mapping[tuple[str, str], Tensor]]] = field(default_factory=dict)
    _stacks: dict[tuple[SummaryType, tuple[str, ...] | None], list[Stack]] = field(default_factory=dict)
    _columns: dict[tuple[str, tuple[int, ...]], Tensor] = field(default_factory=dict)

    def stacks(self, kind: SummaryType, sites: Iterable[str] | None = None) -> list[Stack]:
        """Return the summaries of one type at some sites (default all), one stack for each distinct shape."""
        chosen = None if sites is None else tuple(sites)
        if (kind, chosen) not in self._stacks:
            alike: dict[Any, dict[Key, Fields]] = {}
            for key, fields in self.fields.get(kind, {}).items():
                if chosen is None or key[1] in chosen:
                    alike.setdefault(_shape_of(fields), {})[key] = fields
            self._stacks[kind, chosen] = [self._stack(kind, members) for members in alike.values()]
        return self._stacks[kind, chosen]

    def _stack(self, kind: SummaryType, members: dict[Key, Fields]) -> Stack:
        distinct = {id(fields): fields for fields in members.values()}
        rows = {identity: row for row, identity in enumerate(distinct)}
        summary = self._read(kind, list(distinct.values()))
        return Stack(list(members), [rows[id(fields)] for fields in members.values()], summary)

    def _read(self, kind: SummaryType, members: Sequence[Fields]) -> Any:
        """Read the stacked summary of several (block, site) pairs; a field that some of them lack is left out."""
        values: Fields = {}
        for name, first in members[0].items():
            column = [fields[name] for fields in members if name in fields]
            if isinstance(first, dict):
                values[name] = self._read(TokenSummary, column)
            elif not isinstance(first, Slot):
                values[name] = column if isinstance(first, NormParameters) else first
            elif len(column) == len(members):
                values[name] = select_rows(self._column(first), [slot.row for slot in column])
        return kind(self.layout, **values)

    def _column(self, slot: Slot) -> Tensor:
        """Return all slots of a field, (N, B, …), in float64 unless they are vectors over channels."""
        if slot[:2] not in self._columns:
            column = self.buffers.read(slot.name, slot.tail)[:, : len(self.indices)]
            # Vectors stay in float32: they are half of all memory, and their products are summed over channels anyway.
            vectors = slot.name in ("rows", "patch_abs_sum", "patch_square_sum", "stage_sums", "patch_sample")
            self._columns[slot[:2]] = column if vectors else to_float64(column)
        return self._columns[slot[:2]]
