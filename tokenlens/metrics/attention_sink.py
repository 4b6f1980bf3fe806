"""Attention sinks: tokens that most of the queries of a head attend to, and what they write there."""
# Shapes: B images, H heads, R some queries, T tokens, D channels, d channels of one head.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenlens.families import AttentionOutput
from tokenlens.metrics._per_image import AttentionCallMetric, Values
from tokenlens.metrics.base import Subject
from tokenlens.recording.attention import AttentionCall, as_float, avoid_tf32
from tokenlens.tokens import TokenLayout

MOST = 0.5
"""Attention of a query to the sink that counts."""

QUERIES = 0.9
"""Share of such queries that makes a sink event."""

WEAK, STRONG = 0.2, 0.5
"""Largest strength of a NOP's value, and smallest one of a broadcast's."""

ONE_RANK = 1.5
"""Largest stable rank of a broadcast."""

KINDS = ("none", "nop", "broadcast", "other")

SQUARINGS = 10
"""The largest eigenvalue is that of the 1024th power; exact to 1 % if the next one is not within 0.5 % of it."""


def find_sinks(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the token s with the most attention of all queries, in one pass over the whole pattern A.

    Returns:
        Three tensors (B, H), the position of s, its mean attention, and the share of queries with A_is ≥ 0.5; and
        (A V)ᵀ(A V), (B, H, d, d).
    """
    mass_BHT, many_BHT, gram_BHdd = torch.zeros(()), torch.zeros(()), torch.zeros(())
    v_BHTd, queries = avoid_tf32(as_float(call.v_BHTd)), call.q_BHTd.shape[-2]
    for _, pattern_BHRT in call.row_blocks():
        update_BHRd = pattern_BHRT.to(v_BHTd) @ v_BHTd
        mass_BHT = mass_BHT.to(pattern_BHRT) + pattern_BHRT.sum(-2)
        many_BHT = many_BHT.to(pattern_BHRT) + (pattern_BHRT >= MOST).sum(-2)
        gram_BHdd = gram_BHdd.to(update_BHRd) + update_BHRd.mT @ update_BHRd
    mass_BH, sink_BH = (mass_BHT / queries).max(-1)
    return sink_BH, mass_BH, (many_BHT / queries).gather(-1, sink_BH.unsqueeze(-1)).squeeze(-1), gram_BHdd


def value_strength(v_BHTd: Tensor, factor_Hdd: Tensor, sink_BH: Tensor) -> Tensor:
    """Compute ‖W_O v_s‖ / mean_j ‖W_O v_j‖ of the token s of each head, (B, H), ≥ 0.

    Args:
        v_BHTd: the values.
        factor_Hdd: for each head a matrix F with ‖F v‖ = ‖W_O v‖.
        sink_BH: the position of s.
    """
    lengths_BHT = torch.linalg.vector_norm(_apply(factor_Hdd, v_BHTd), dim=-1)
    return lengths_BHT.gather(-1, sink_BH.unsqueeze(-1)).squeeze(-1) / lengths_BHT.mean(-1)


def stable_rank(gram: Tensor) -> Tensor:
    """Compute ‖U‖²_F / σ₁², the stable rank, of matrices U from UᵀU (..., d, d); ≥ 1.

    σ₁² is the largest eigenvalue, by repeated squaring, which unlike a decomposition does not wait for the device.

    >>> stable_rank(torch.tensor([[[9.0, 0.0], [0.0, 9.0]], [[5.0, 10.0], [10.0, 20.0]]]))
    tensor([2., 1.])
    """
    power = gram
    for _ in range(SQUARINGS):
        power = power / _trace(power)[..., None, None]
        power = power @ power
    return _trace(gram) * _trace(power) / (gram * power).sum((-2, -1))


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)


class AttentionSink(AttentionCallMetric):
    """Tokens that most queries of a head attend to, and whether they write nothing (NOP) or one vector (broadcast).

    Formula: s = argmax_j ⟨A_ij⟩ over all queries i, per image and head. A sink event is at least 90 % of the queries
        with A_is ≥ 0.5. With r = ‖W_O v_s‖ / ⟨‖W_O v_j‖⟩ over all tokens j it is a NOP where r ≤ 0.2, and a broadcast
        where r ≥ 0.5 and the stable rank ‖U‖²_F/σ₁² of U = A V W_O is at most 1.5.
    Parts:
        mass: ⟨A_is⟩ over queries, in [0, 1]; 1/T for uniform attention over T tokens.
        queries: share of queries with A_is ≥ 0.5.
        strength: r, ≥ 0; 1 is a value of average length. Also where there is no event.
        none: share of images without an event; the four kinds sum to 1.
        nop: share of images with a NOP.
        broadcast: share of images with a broadcast.
        other: share of images with an event that is neither.
        sink: share of images with an event at a token of the group; over groups it is 1 − none. An attention bias
            counts as a token here, and its group is ``bias``.
    Reference: arXiv 2606.08105 for the kinds; Xiao et al. 2023 (arXiv 2309.17453) for sinks.
    Pitfalls: W_O is the output projection alone: LayerScale and norms after it, which also decide what reaches the
        residual stream, do not count. Attention that two tokens share (two registers) is an event of neither. Shares of
        images have Wilson's interval, which is wide with few images: 0 of 16 is compatible with 19 %.
    Tested against: softmax, projections and singular values in float64 NumPy on stored activations.
    """

    title = "attention sink"
    unit = {  # noqa: RUF012
        "mass": "share",
        "queries": "share",
        "strength": "ratio",
        "none": "share of images",
        "nop": "share of images",
        "broadcast": "share of images",
        "other": "share of images",
        "sink": "share of images",
    }
    cost = (
        "a pass over the whole pattern and its product with the values: about 40 % of a ViT-S forward pass at "
        "197 tokens, 105 % at 1370 (CPU)"
    )

    def __init__(self) -> None:
        super().__init__()
        self._outputs: list[AttentionOutput] = []
        self._factors: dict[int, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model's modules out of what is sent to other processes."""
        return self.__dict__ | {"_outputs": [], "_factors": {}}

    def prepare(self, subject: Subject) -> str | None:
        """Find the output projections of all blocks; say so where the family has none."""
        reason = super().prepare(subject)
        if reason is not None or subject.family is None:
            return reason
        try:
            self._outputs = [subject.family.attention_output(block) for block in subject.family.blocks(subject.model)]
            for output in self._outputs:
                output.projection()
        except LookupError as error:
            return str(error)
        return None

    def look(self, layout: TokenLayout, block: int, call: AttentionCall) -> Values:
        """Compute the numbers of one block, per image and head."""
        call = call.over_all_keys()
        factor_Hdd = self._factor(block, call)
        sink_BH, mass_BH, queries_BH, gram_BHdd = find_sinks(call)
        strength_BH = value_strength(call.v_BHTd, factor_Hdd, sink_BH)
        factor_Hdd = factor_Hdd.to(gram_BHdd)
        rank_BH = stable_rank(factor_Hdd @ gram_BHdd @ factor_Hdd.mT)
        event_BH = queries_BH >= QUERIES
        nop_BH = event_BH & (strength_BH <= WEAK)
        broadcast_BH = event_BH & (strength_BH >= STRONG) & (rank_BH <= ONE_RANK)
        kinds = (~event_BH, nop_BH, broadcast_BH, event_BH & ~nop_BH & ~broadcast_BH)
        numbers = {("mass", "all"): mass_BH, ("queries", "all"): queries_BH, ("strength", "all"): strength_BH}
        numbers |= {(name, "all"): kind_BH.to(mass_BH) for name, kind_BH in zip(KINDS, kinds, strict=True)}
        for group in layout.groups:
            numbers["sink", group] = (event_BH & _is_in(layout, group, sink_BH)).to(mass_BH)
        if layout.attention_bias:
            numbers["sink", "bias"] = (event_BH & (sink_BH == layout.tokens)).to(mass_BH)
        return numbers

    def _factor(self, block: int, call: AttentionCall) -> Tensor:
        """Return R of W_O = QR for each head: ‖R v‖ = ‖W_O v‖, with d² numbers instead of D·d."""
        if block not in self._factors:
            heads, v_BHTd = call.q_BHTd.shape[1], as_float(call.v_BHTd)
            weight_HDd = self._outputs[block].projection().to(v_BHTd).unflatten(1, (heads, -1)).transpose(0, 1)
            self._factors[block] = torch.linalg.qr(weight_HDd).R
        return self._factors[block]


def _is_in(layout: TokenLayout, group: str, sink_BH: Tensor) -> Tensor:
    """Return whether each token is in the group, without copying positions to the device."""
    found = torch.zeros_like(sink_BH, dtype=torch.bool)
    for position in layout.prefix_positions if group == "patch" else layout.positions(group):
        found |= sink_BH == position
    return ~found & (sink_BH < layout.tokens) if group == "patch" else found


def _apply(factor_Hdd: Tensor, x_BHTd: Tensor) -> Tensor:
    """Compute F x of every vector x."""
    x_BHTd = as_float(x_BHTd)
    return (avoid_tf32(x_BHTd) @ avoid_tf32(factor_Hdd).to(avoid_tf32(x_BHTd)).mT).to(factor_Hdd.dtype)
