"""exp of the entropy of the normalised singular values, one image at a time."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "image"


def _rank(patch: np.ndarray) -> float:
    values = np.linalg.svd(patch, compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def reference_effective_rank(stored: Stored) -> dict[Number, object]:
    return {
        ("", block, site, "patch", None): np.array([_rank(patch) for patch in stored.of("patch", x)])
        for (block, site), x in stored.tokens.items()
        if site == "resid_post"
    }
