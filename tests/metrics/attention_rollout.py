"""The product of all blocks' mean patterns, half identity each (Abnar and Zuidema 2020), image by image."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "image"
NEEDS = ("cls",)


def _cls_rollouts(stored: Stored) -> np.ndarray:
    """(block, N, T), the CLS row of the rollout after each block."""
    images, tokens = stored.images, len(stored.prefix) + stored.grid[0] * stored.grid[1]
    rows = np.empty((len(stored.patterns), images, tokens))
    for image in range(images):
        rollout = np.eye(tokens)
        for block, pattern in sorted(stored.patterns.items()):
            mixed = pattern[image].mean(axis=0) + np.eye(tokens)
            rollout = (mixed / mixed.sum(axis=1, keepdims=True)) @ rollout
            rows[block, image] = rollout[stored.positions("cls")[0]]
    return rows


def reference_attention_rollout(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for block, rows in enumerate(_cls_rollouts(stored)):
        for group in stored.groups:
            numbers["mass", block, "pattern", f"cls-{group}", None] = rows[:, stored.positions(group)].sum(axis=-1)
        patches = rows[:, stored.positions("patch")]
        share = patches / patches.sum(axis=-1, keepdims=True)
        entropy = -(share * np.log(share)).sum(axis=-1)
        numbers["normalized_entropy", block, "pattern", "cls-patch", None] = entropy / np.log(patches.shape[-1])
    return numbers


def reference_arrays(stored: Stored) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    rows = _cls_rollouts(stored)[..., stored.positions("patch")]
    maps = rows.reshape(*rows.shape[:2], *stored.grid)
    dims = ("block", "row", "column")
    return {"mean": (dims, maps.mean(axis=1)), "sd": (dims, maps.std(axis=1, ddof=1))}
