"""Attention sinks: tokens that most of the queries of a head attend to, and what they write there."""
# Shapes: B images, H heads, R some queries, T tokens, N chosen (image, head) pairs, D channels, d channels of one head.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenlens.families import AttentionOutput
from tokenlens.metrics._per_image import AttentionCallMetric, Values
from tokenlens.metrics.base import Subject
from tokenlens.recording import AttentionCall
from tokenlens.recording.attention import as_float, avoid_tf32
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


def find_sinks(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """Find the token with the most attention of all queries: its position, that mean, and the share of queries ≥ 0.5.

    Returns:
        Three tensors (B, H); the cost is one pass over the whole pattern.
    """
    mass_BHT, many_BHT, queries = torch.zeros(()), torch.zeros(()), call.q_BHTd.shape[-2]
    for _, pattern_BHRT in call.row_blocks():
        mass_BHT = mass_BHT.to(pattern_BHRT) + pattern_BHRT.sum(-2)
        many_BHT = many_BHT.to(pattern_BHRT) + (pattern_BHRT >= MOST).sum(-2)
    mass_BH, sink_BH = (mass_BHT / queries).max(-1)
    return sink_BH, mass_BH, (many_BHT / queries).gather(-1, sink_BH.unsqueeze(-1)).squeeze(-1)


def value_strength(v_BHTd: Tensor, factor_Hdd: Tensor, sink_BH: Tensor) -> Tensor:
    """Compute ‖W_O v_s‖ / mean_j ‖W_O v_j‖ of the token s of each head, (B, H), ≥ 0.

    Args:
        v_BHTd: the values.
        factor_Hdd: for each head a matrix F with ‖F v‖ = ‖W_O v‖.
        sink_BH: the position of s.
    """
    lengths_BHT = torch.linalg.vector_norm(_apply(factor_Hdd, v_BHTd), dim=-1)
    return lengths_BHT.gather(-1, sink_BH.unsqueeze(-1)).squeeze(-1) / lengths_BHT.mean(-1)


def stable_rank(update_NTd: Tensor) -> Tensor:
    """Compute ‖U‖²_F / σ₁², the stable rank, of N matrices, (N,), ≥ 1.

    >>> stable_rank(torch.tensor([[[3.0, 0.0], [0.0, 3.0]], [[1.0, 2.0], [2.0, 4.0]]]))
    tensor([2., 1.])
    """
    gram_Ndd = avoid_tf32(update_NTd.mT) @ avoid_tf32(update_NTd)
    largest_N = torch.linalg.eigvalsh(gram_Ndd)[..., -1]
    return gram_Ndd.diagonal(dim1=-2, dim2=-1).sum(-1) / largest_N


class AttentionSink(AttentionCallMetric):
    """Tokens that most queries of a head attend to, by what their values write: nothing (NOP) or one vector for all.

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
        "a pass over the whole pattern: about 23 % of a ViT-S forward pass at 197 tokens, 63 % at 1370 (CPU), and for "
        "each head with a sink whose value is not weak its attention once more"
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
        sink_BH, mass_BH, queries_BH = find_sinks(call)
        strength_BH = value_strength(call.v_BHTd, factor_Hdd, sink_BH)
        event_BH = queries_BH >= QUERIES
        nop_BH, strong_BH = event_BH & (strength_BH <= WEAK), event_BH & (strength_BH >= STRONG)
        broadcast_BH = torch.zeros_like(event_BH)
        if strong_BH.any():
            broadcast_BH[strong_BH] = stable_rank(head_updates(call, factor_Hdd, strong_BH)) <= ONE_RANK
        kinds = (~event_BH, nop_BH, broadcast_BH, event_BH & ~nop_BH & ~broadcast_BH)
        numbers = {("mass", "all"): mass_BH, ("queries", "all"): queries_BH, ("strength", "all"): strength_BH}
        numbers |= {(name, "all"): kind_BH.to(mass_BH) for name, kind_BH in zip(KINDS, kinds, strict=True)}
        for group in layout.groups:
            positions = torch.tensor(layout.positions(group), device=sink_BH.device)
            numbers["sink", group] = (event_BH & torch.isin(sink_BH, positions)).to(mass_BH)
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


def head_updates(call: AttentionCall, factor_Hdd: Tensor, chosen_BH: Tensor) -> Tensor:
    """Compute A V Fᵀ of the chosen heads, (N, T, d), which has the singular values of A V W_O."""
    image_N, head_N = chosen_BH.nonzero(as_tuple=True)

    def choose(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.expand(*chosen_BH.shape, *x.shape[2:])[image_N, head_N].unsqueeze(1)

    q, k, v = (x[image_N, head_N].unsqueeze(1) for x in (call.q_BHTd, call.k_BHTd, call.v_BHTd))
    alone = AttentionCall(q, k, v, call.scale, choose(call.bias), pattern_BHTT=choose(call.pattern_BHTT))
    v_N1Td = avoid_tf32(as_float(v))
    update_N1Td = torch.cat([pattern.to(v_N1Td) @ v_N1Td for _, pattern in alone.row_blocks()], dim=-2)
    return _apply(factor_Hdd[head_N].unsqueeze(1), update_N1Td).squeeze(1)


def _apply(factor_Hdd: Tensor, x_BHTd: Tensor) -> Tensor:
    """Compute F x of every vector x."""
    x_BHTd = as_float(x_BHTd)
    return (avoid_tf32(x_BHTd) @ avoid_tf32(factor_Hdd).to(avoid_tf32(x_BHTd)).mT).to(factor_Hdd.dtype)
