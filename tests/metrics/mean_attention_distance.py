"""Distance from patch to patch, one query at a time, weighted by its attention to patches."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "image"


def _centres(grid: tuple[int, int]) -> np.ndarray:
    """(P, 2), row and column of each patch."""
    return np.array([(row, column) for row in range(grid[0]) for column in range(grid[1])], dtype=float)


def reference_mean_attention_distance(stored: Stored) -> dict[Number, object]:
    centres, patches = _centres(stored.grid), stored.positions("patch")
    uniform = np.mean([np.linalg.norm(one - two) for one in centres for two in centres])
    numbers: dict[Number, object] = {}
    for block, pattern in stored.patterns.items():
        for head in range(pattern.shape[1]):
            of_queries = []
            for query, centre in zip(patches, centres, strict=True):
                distance = np.linalg.norm(centres - centre, axis=-1)
                of_queries.append([np.average(distance, weights=row[patches]) for row in pattern[:, head, query]])
            value = np.mean(of_queries, axis=0)
            numbers["distance", block, "pattern", "patch-patch", head] = value
            numbers["over_uniform", block, "pattern", "patch-patch", head] = value / uniform
    return numbers
