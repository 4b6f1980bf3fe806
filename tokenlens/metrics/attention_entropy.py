"""How spread out CLS looks over the patches."""
# Shapes: B images, H heads, P patches; "..." any leading axes.

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenlens.metrics.base import AttentionMetric, Subject, Values
from tokenlens.reduction.summaries import AttentionSummary


def attention_entropy(row_BHP: Tensor) -> Tensor:
    """Entropy in nats of attention over the last axis, after it is made to sum to 1, in [0, log P].

    >>> round(float(attention_entropy(torch.ones(4)).exp()), 6)
    4.0
    """
    share = row_BHP / row_BHP.sum(-1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(-1)


class AttentionEntropy(AttentionMetric):
    """Of the CLS row over patches, per head: divided by log P (1 is uniform), and as an effective number of patches."""

    title = "CLS attention entropy"
    unit = {"normalized": "entropy / log P", "effective_patches": "patches"}  # noqa: RUF012
    requires = ("cls",)

    def prepare(self, subject: Subject) -> str | None:
        """With one patch log P is 0."""
        return "the image is one single patch" if subject.layout.patches < 2 else super().prepare(subject)

    def per_image(self, summary: AttentionSummary) -> Values:
        """Normalized entropy, and its exponential."""
        assert summary.cls_row is not None
        entropy = attention_entropy(summary.cls_row[..., summary.layout.patch_slice])
        return {
            ("normalized", "cls-patch"): entropy / math.log(summary.layout.patches),
            ("effective_patches", "cls-patch"): entropy.exp(),
        }
