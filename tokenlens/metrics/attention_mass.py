"""Where attention goes: from CLS to the token groups, and from patches to the prefix tokens."""
# Shapes: B images, H heads, T tokens; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics.base import AttentionMetric, Subject, Values
from tokenlens.reduction.summaries import AttentionSummary
from tokenlens.tokens import TokenLayout, take


def attention_mass(pattern_BHTT: Tensor, layout: TokenLayout, query: str, key: str) -> Tensor:
    """Attention that one group's tokens pay to all tokens of another, mean over the queries, (B, H), in [0, 1]."""
    rows = pattern_BHTT[..., list(layout.positions(query)), :]
    return rows[..., list(layout.positions(key))].sum(-1).mean(-1)


class AttentionMass(AttentionMetric):
    """Per head; the query group comes first in ``group``."""

    title = "attention mass"
    unit = "share"

    def prepare(self, subject: Subject) -> str | None:
        """Without prefix tokens, patches attend to patches alone."""
        return super().prepare(subject) if subject.layout.prefix else "the model has no prefix token"

    def per_image(self, summary: AttentionSummary) -> Values:
        """From the CLS row and the mean columns of the prefix tokens."""
        layout, values = summary.layout, {}
        for group in layout.groups:
            if summary.cls_row is not None:
                values["", f"cls-{group}"] = take(summary.cls_row, layout.positions(group), -1).sum(-1)
            if group != "patch" and summary.patch_to_prefix is not None:
                columns = take(summary.patch_to_prefix, layout.prefix_index(group), -1)
                values["", f"patch-{group}"] = columns.sum(-1)
        return values
