"""Sums over the whole pattern: attention of CLS to each group, and mean attention of patches to each special group."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "image"
NEEDS = ("prefix",)


def reference_attention_mass(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for block, pattern in stored.patterns.items():
        for query in [group for group in ("cls", "patch") if group in stored.groups]:
            for key in stored.groups:
                if (query, key) == ("patch", "patch"):
                    continue
                mass = pattern[:, :, stored.positions(query)][..., stored.positions(key)].sum(-1)
                for head in range(pattern.shape[1]):
                    numbers["", block, "pattern", f"{query}-{key}", head] = np.mean(mass[:, head], axis=-1)
    return numbers
