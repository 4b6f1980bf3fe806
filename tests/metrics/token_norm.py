"""Token norms per group; for patches, the largest over the median and the shares of outliers by two rules."""

import numpy as np

from tests.metrics._stored import RESIDUALS, Number, Stored

LEVEL = "image"


def reference_token_norm(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site), x in stored.tokens.items():
        if site not in RESIDUALS:
            continue
        for group in stored.groups:
            norms = np.sqrt((stored.of(group, x) ** 2).sum(-1))
            numbers["mean", block, site, group, None] = norms.mean(-1)
        median = np.median(norms, axis=-1)
        numbers["max_over_median", block, site, "patch", None] = norms.max(-1) / median
        numbers["high_norm_share", block, site, "patch", None] = (norms > 3 * median[:, None]).mean(-1)
        mad = np.median(np.abs(norms - median[:, None]), axis=-1)
        above = norms - median[:, None] > 4 * 1.4826 * mad[:, None]
        numbers["outlier_share", block, site, "patch", None] = above.mean(-1)
    return numbers
