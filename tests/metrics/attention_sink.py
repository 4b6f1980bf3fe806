"""Sinks of stored patterns, head by head, with W_O from timm's projection and singular values from NumPy."""

import numpy as np

from tests.metrics._stored import Number, Stored, numpy64

LEVEL = "image"


def _one_head(pattern: np.ndarray, v: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """Return the numbers of one image and head from A (T, T), v (T, d) and W_O (D, d); ``at`` is where s is."""
    at = int(pattern.mean(0).argmax())
    queries = (pattern[:, at] >= 0.5).mean()
    lengths = np.linalg.norm(v @ weight.T, axis=1)
    strength = lengths[at] / lengths.mean()
    singular = np.linalg.svd(pattern @ v @ weight.T, compute_uv=False)
    kind = "other"
    if queries < 0.9:
        kind = "none"
    elif strength <= 0.2:
        kind = "nop"
    elif strength >= 0.5 and (singular**2).sum() / singular[0] ** 2 <= 1.5:
        kind = "broadcast"
    shares = {name: float(kind == name) for name in ("none", "nop", "broadcast", "other")}
    return {"at": at, "mass": pattern[:, at].mean(), "queries": queries, "strength": strength, **shares}


def reference_attention_sink(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for block, patterns in stored.patterns.items():
        weight = numpy64(stored.model.blocks[block].attn.proj.weight)
        size = weight.shape[1] // patterns.shape[1]
        for head in range(patterns.shape[1]):
            mine = weight[:, head * size : (head + 1) * size]
            found = [
                _one_head(pattern[head], v[head], mine)
                for pattern, v in zip(patterns, stored.heads[block, "v"], strict=True)
            ]
            for part in ("mass", "queries", "strength", "none", "nop", "broadcast", "other"):
                numbers[part, block, "pattern", "all", head] = np.array([each[part] for each in found])
            for group in stored.groups:
                at = [each["none"] == 0 and each["at"] in stored.positions(group) for each in found]
                numbers["sink", block, "pattern", group, head] = np.array(at, float)
    return numbers
