"""Attention of the pooling latent to each token group, and its entropy over the patches."""
# Shapes: B images, H heads, L latents, P patches; "..." any leading axes.

from __future__ import annotations

import math

from torch import Tensor

from tokenlens.metrics._per_image import LatentMetric, Values
from tokenlens.metrics.attention_entropy import attention_entropy
from tokenlens.recording.recorder import PooledTokens
from tokenlens.reduction.summaries import to_float64
from tokenlens.tokens import TokenLayout, take


def latent_attention(rows_BHLT: Tensor, layout: TokenLayout, group: str) -> Tensor:
    """Compute the attention of the latents to all tokens of a group, mean over the latents, (B, H), in [0, 1]."""
    return take(rows_BHLT, layout.positions(group), -1).sum(-1).mean(-1)


class LatentAttention(LatentMetric):
    """Attention of the latent of a MAP head, which pools the tokens at the end of the model, per head.

    Formula: the rows a of softmax(QKᵀ/√d) of the latents, mean over the latents if there are several.
    Parts:
        mass: Σ a_j over the tokens j of a group (``latent-patch``, ``latent-reg``, …), in [0, 1]; they add up to 1.
        normalized_entropy: entropy of a over the patches, normalized to sum to 1, over log P, in [0, 1]; 1 is uniform.
    Reference: Zhai et al. 2022 (arXiv 2106.04560) on the MAP head.
    Pitfalls: A latent is no token of the sequence: it is the same for all images, and nothing attends to it.
    Tested against: the softmax of stored tokens in NumPy, and ``scipy.stats.entropy``.
    """

    title = "attention of the pooling latent"
    unit = {"mass": "share", "normalized_entropy": "entropy / log P"}  # noqa: RUF012
    needs = frozenset({"several_patches"})

    def per_image(self, pooled: PooledTokens) -> Values:
        """Compute shares and entropy of the rows."""
        layout, rows_BHLT = pooled.layout, to_float64(pooled.call.rows(range(pooled.call.q_BHTd.shape[-2])))
        values = {("mass", f"latent-{group}"): latent_attention(rows_BHLT, layout, group) for group in layout.groups}
        entropy = attention_entropy(layout.patches_of(rows_BHLT, -1)).mean(-1) / math.log(layout.patches)
        return values | {("normalized_entropy", "latent-patch"): entropy}
