"""Frobenius norm of the differences from the mean patch, over that of the patches."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "image"
ABSOLUTE = 2e-5
"""A diversity near 0 is the root of a small difference of sums in float32 (see the card's pitfalls)."""


def reference_patch_diversity(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site), x in stored.tokens.items():
        patches = stored.of("patch", x)
        differences = patches - patches.mean(1, keepdims=True)
        size, whole = (np.sqrt((each**2).sum((1, 2))) for each in (differences, patches))
        numbers["", block, site, "patch", None] = size / whole
    return numbers
