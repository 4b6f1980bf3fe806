"""Metrics, one file each, and the contract that they share."""

from tokenlens.metrics._jackknife import AccumulatingMetric, JackknifeMetric
from tokenlens.metrics._per_image import (
    AttentionCallMetric,
    AttentionMetric,
    HookMetric,
    LatentMetric,
    NormMetric,
    PerImageMetric,
    RawTokenMetric,
    RawTokens,
    TokenMetric,
    UpdateMetric,
    Values,
)
from tokenlens.metrics.base import (
    BOUNDS,
    PATTERN,
    RANGES,
    TOKEN_REDUCTIONS,
    UNBOUNDED,
    Metric,
    NamedArray,
    Row,
    Subject,
    make_row,
    metrics,
)
from tokenlens.metrics.token_norm import high_norm_patches
from tokenlens.tokens import RESIDUAL_SITES

__all__ = [
    "BOUNDS",
    "PATTERN",
    "RANGES",
    "RESIDUAL_SITES",
    "TOKEN_REDUCTIONS",
    "UNBOUNDED",
    "AccumulatingMetric",
    "AttentionCallMetric",
    "AttentionMetric",
    "HookMetric",
    "JackknifeMetric",
    "LatentMetric",
    "Metric",
    "NamedArray",
    "NormMetric",
    "PerImageMetric",
    "RawTokenMetric",
    "RawTokens",
    "Row",
    "Subject",
    "TokenMetric",
    "UpdateMetric",
    "Values",
    "high_norm_patches",
    "make_row",
    "metrics",
]
