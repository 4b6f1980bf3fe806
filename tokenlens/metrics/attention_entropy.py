"""Entropy of the attention of CLS over the patches."""
# Shapes: B images, H heads, P patches; "..." any leading axes.

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenlens.metrics._per_image import AttentionMetric, Values
from tokenlens.reduction.summaries import AttentionSummary


def attention_entropy(row_BHP: Tensor) -> Tensor:
    """Compute the entropy in nats of attention over the last axis, normalized to sum to 1, in [0, log P].

    >>> round(float(attention_entropy(torch.ones(4)).exp()), 6)
    4.0
    """
    share = row_BHP / row_BHP.sum(-1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(-1)


class AttentionEntropy(AttentionMetric):
    """Spread of CLS's attention over the patches, per head.

    Formula: H = −Σ a_i log a_i over patches, with the CLS row a normalized to sum to 1 over them.
    Parts:
        normalized: H / log P, in [0, 1]; 1 is uniform.
        effective_patches: exp H, in [1, P].
    Reference: Shannon 1948.
    Pitfalls: Attention to special tokens does not count: a head that sends 99 % of it to registers can be uniform here.
    Tested against: ``scipy.stats.entropy`` of stored patterns.
    """

    title = "CLS attention entropy"
    unit = {"normalized": "entropy / log P", "effective_patches": "patches"}  # noqa: RUF012
    needs = frozenset({"cls", "several_patches"})
    no_interval = {"effective_patches": "rare images with attention to very many patches decide its mean"}  # noqa: RUF012

    def per_image(self, summary: AttentionSummary) -> Values:
        """Compute the entropy of the CLS row over patches."""
        assert summary.cls_row is not None
        entropy = attention_entropy(summary.layout.patches_of(summary.cls_row, -1))
        return {
            ("normalized", "cls-patch"): entropy / math.log(summary.layout.patches),
            ("effective_patches", "cls-patch"): entropy.exp(),
        }
