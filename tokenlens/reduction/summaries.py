"""Summaries of activations: the few sums over tokens that are kept, and from which metrics are computed.

A hook makes a summary of one site and one forward pass, with tensors (B, …). Metrics get the summaries of one type for
several blocks and sites and all passes, stacked along a first axis (N, B, …), so that they run a few operations per
pool of images and not per site.
"""

# Shapes: N stacked summaries, B images, T tokens, P patches, R prefix tokens, D channels, H heads, d channels per head.
# "..." stands for (N, B), and for (N, B, H) at q, k and v.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from tokenlens.families import NormParameters
from tokenlens.tokens import Key, TokenLayout, take

Reduction = Literal["unit_patch_sum", "patch_sum", "patch_abs_sum", "patch_square_sum"]
"""Sums over patches that a metric can ask for; prefix tokens and the norms of all tokens are always kept."""


def to_float64(x: Tensor) -> Tensor:
    """Convert to float64, or to float32 on devices without float64."""
    return x.float() if x.device.type == "mps" else x.double()


@dataclass
class TokenSummary:
    """The tokens at one site; sums over patches are None where no metric asked for them.

    Attributes:
        prefix: (..., R, D), the prefix tokens in layout order.
        norms: (..., T), Euclidean norm of every token.
        unit_patch_sum: (..., D), Σ_i x_i/‖x_i‖ over patches.
        patch_sum: (..., D), Σ_i x_i over patches.
        patch_abs_sum: (..., D), Σ_i |x_i| over patches.
        patch_square_sum: (..., D), Σ_i x_i² over patches.
    """

    layout: TokenLayout
    prefix: Tensor
    norms: Tensor
    unit_patch_sum: Tensor | None = None
    patch_sum: Tensor | None = None
    patch_abs_sum: Tensor | None = None
    patch_square_sum: Tensor | None = None

    def group(self, group: str) -> Tensor:
        """Return the tokens of a prefix group, (..., R_group, D)."""
        return take(self.prefix, self.layout.prefix_index(group), -2)

    def unit_group(self, group: str) -> Tensor:
        """Return the tokens of a prefix group, each divided by its norm, (..., R_group, D)."""
        tokens = self.group(group)
        return tokens / torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)

    def norms_of(self, group: str) -> Tensor:
        """Return the norms of one group's tokens, (..., tokens of the group)."""
        return take(self.norms, self.layout.positions(group), -1)


@dataclass
class NormSummary:
    """One norm: its tokens before and after, and its patches after its intermediate stages.

    Attributes:
        input, output: the tokens before and after.
        parameters: the parameters of the N norms, which are of one kind and have the same ones.
        patch_lengths: (..., P), ‖x_i − μ_i‖.
        centred_patch_sum: (..., D), sum over patches of the unit vectors of x_i − μ_i.
        weighted_patch_sum: (..., D), sum over patches of the unit vectors of γ⊙(x_i − μ_i).
        mean: (..., T), the mean that a LayerNorm subtracts; None for RMSNorm.
        patch_sample: (..., K, D), some patches of the input, at places chosen once; None if no metric asked for them.
    """

    layout: TokenLayout
    input: TokenSummary
    output: TokenSummary
    parameters: Sequence[NormParameters]
    patch_lengths: Tensor
    centred_patch_sum: Tensor
    weighted_patch_sum: Tensor
    mean: Tensor | None = None
    patch_sample: Tensor | None = None

    @property
    def kind(self) -> str:
        """``"layer"`` or ``"rms"``."""
        return self.parameters[0].kind

    def parameter(self, name: str) -> Tensor | None:
        """Return ``weight_prefix``, ``weight_patch``, ``bias_prefix`` or ``bias_patch``, (N, 1, D), or None."""
        values = [getattr(norm, name) for norm in self.parameters]
        return None if values[0] is None else torch.stack(values).to(self.centred_patch_sum.dtype).unsqueeze(1)

    @cached_property
    def centred_prefix(self) -> Tensor:
        """Prefix tokens minus their mean (unchanged for RMSNorm), (..., R, D)."""
        prefix = self.input.prefix
        return prefix - prefix.mean(-1, keepdim=True) if self.kind == "layer" else prefix


@dataclass
class AttentionSummary:
    """The attention of one block.

    Attributes:
        cls_row: (..., H, T), attention of CLS to every token, mean over class tokens; None without CLS.
        patch_to_prefix: (..., H, R), mean over patches of their attention to each prefix token; None without any.
        bias_mass: (..., H, T), attention of every token to the attention bias; None without one.
    """

    layout: TokenLayout
    cls_row: Tensor | None = None
    patch_to_prefix: Tensor | None = None
    bias_mass: Tensor | None = None


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


Summary = TokenSummary | NormSummary | AttentionSummary | UpdateSummary
SummaryType = type[Summary]

_SOMETIMES = ("patch_abs_sum", "patch_square_sum", "patch_sample")
"""Fields that a summary may have only because another site has the same tensor, or that one norm has."""

_VECTORS = ("prefix", "unit_patch_sum", "patch_sum", "centred_patch_sum", "weighted_patch_sum", *_SOMETIMES)
"""Fields that stay in float32: they are half of all memory, and their products are summed over channels anyway."""


def _shape_of(summary: Any) -> tuple[Any, ...]:
    """Return what must be equal for two summaries to be stacked."""
    shape: list[Any] = []
    for item in fields(summary):
        value = getattr(summary, item.name)
        if isinstance(value, TokenSummary):
            shape.append(_shape_of(value))
        elif item.name == "parameters":
            norm = value[0]
            present = (norm.weight_prefix, norm.weight_patch, norm.bias_prefix, norm.bias_patch)
            shape.append((norm.kind, *(parameter is None for parameter in present)))
        elif isinstance(value, Tensor) and item.name not in _SOMETIMES:
            shape.append((item.name, value.shape[1:]))
    return tuple(shape)


@dataclass
class Stack:
    """The stacked summaries of N (block, site) pairs, which are of equal shape."""

    keys: list[Key]
    summary: Any


@dataclass
class BatchSummary:
    """The summaries of all images of one or several forward passes.

    Attributes:
        layout: the token layout.
        indices: each image's index in the image source.
        summaries: for each type of summary and (block, site), those of all passes.
        raw: results of metrics that are computed from the activations themselves, by metric and (block, site).
    """

    layout: TokenLayout
    indices: list[int]
    summaries: Mapping[SummaryType, Mapping[Key, list[Summary]]]
    raw: Mapping[str, Mapping[Key, Mapping[tuple[str, str], Tensor]]] = field(default_factory=dict)
    _stacks: dict[tuple[SummaryType, tuple[str, ...]], list[Stack]] = field(default_factory=dict)

    def stacks(self, kind: SummaryType, sites: Iterable[str]) -> list[Stack]:
        """Return the summaries of one type at some sites, one stack for each distinct shape."""
        chosen = tuple(sites)
        if (kind, chosen) not in self._stacks:
            alike: dict[Any, dict[Key, list[Summary]]] = {}
            for key, passes in self.summaries.get(kind, {}).items():
                if key[1] in chosen:
                    alike.setdefault(_shape_of(passes[0]), {})[key] = passes
            self._stacks[kind, chosen] = [
                Stack(list(members), _join(list(members.values()))) for members in alike.values()
            ]
        return self._stacks[kind, chosen]


def _join(members: Sequence[Sequence[Any]]) -> Any:
    """Stack summaries of several sites and join all passes; in float64, except vectors."""
    values: dict[str, Any] = {}
    for item in fields(members[0][0]):
        parts = [[getattr(summary, item.name) for summary in passes] for passes in members]
        first = parts[0][0]
        if isinstance(first, TokenSummary):
            values[item.name] = _join(parts)
        elif isinstance(first, Tensor) and all(passes[0] is not None for passes in parts):
            joined = torch.cat([part for passes in parts for part in passes]).unflatten(0, (len(members), -1))
            values[item.name] = joined if item.name in _VECTORS else to_float64(joined)
        elif item.name == "parameters":
            values[item.name] = [passes[0][0] for passes in parts]
        else:
            values[item.name] = first if isinstance(first, TokenLayout) else None
    return type(members[0][0])(**values)
