"""Attention of CLS to each token group, and of patches to the special tokens."""
# Shapes: B images, H heads, T tokens; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics._per_image import AttentionMetric, Values
from tokenlens.reduction.summaries import AttentionSummary
from tokenlens.tokens import TokenLayout, take


def attention_mass(pattern_BHTT: Tensor, layout: TokenLayout, query: str, key: str) -> Tensor:
    """Compute the attention of one group to all tokens of another, mean over the queries, (B, H), in [0, 1]."""
    rows = pattern_BHTT[..., list(layout.positions(query)), :]
    return rows[..., list(layout.positions(key))].sum(-1).mean(-1)


class AttentionMass(AttentionMetric):
    """Share of attention between token groups, per head; ``group`` names the query first.

    Formula: Σ_j A_ij over the tokens j of a group, mean over the querying tokens i, in [0, 1]. The rows of CLS
        (``cls-cls``, ``cls-patch``, …) add up to 1; patches are reported to special tokens only (``patch-cls``, …).
        With an attention bias (a learned key), ``cls-bias`` and ``patch-bias`` are the attention to it.
    Reference: Darcet et al. 2024 (arXiv 2309.16588) on attention to registers.
    Pitfalls: Groups differ in size: uniform attention gives the patches nearly all of it.
    Tested against: sums over stored patterns.
    """

    title = "attention mass"
    unit = "share"
    needs = frozenset({"special_tokens"})

    def per_image(self, summary: AttentionSummary) -> Values:
        """Add up the CLS row and the mean columns of the special tokens by group."""
        layout, values = summary.layout, {}
        for group in layout.groups:
            if summary.cls_row is not None:
                values["", f"cls-{group}"] = take(summary.cls_row, layout.positions(group), -1).sum(-1)
            if group != "patch" and summary.patch_to_prefix is not None:
                columns = take(summary.patch_to_prefix, layout.prefix_index(group), -1)
                values["", f"patch-{group}"] = columns.sum(-1)
        if summary.bias_mass is not None:
            for query in ("cls", "patch") if layout.has("cls") else ("patch",):
                values["", f"{query}-bias"] = layout.mean_of(summary.bias_mass, query, -1)
        return values
