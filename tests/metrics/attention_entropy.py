"""Shannon entropy of the CLS row over patches, over log P; and its exponential."""

import numpy as np
from scipy import stats

from tests.metrics._stored import Number, Stored

LEVEL = "image"
NEEDS = ("cls",)


def reference_attention_entropy(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    patches = stored.positions("patch")
    for block, pattern in stored.patterns.items():
        for head in range(pattern.shape[1]):
            row = pattern[:, head, stored.positions("cls")[0], patches]
            entropy = np.array([stats.entropy(weights) for weights in row.reshape(len(pattern), -1)])
            numbers["normalized", block, "pattern", "cls-patch", head] = entropy / np.log(len(patches))
            numbers["effective_patches", block, "pattern", "cls-patch", head] = np.exp(entropy)
    return numbers
