"""Products of unit vectors channel by channel, summed over every single patch."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "image"
NEEDS = ("cls",)


def _contributions(stored: Stored, x: np.ndarray) -> np.ndarray:
    """Return the parts of the CLS–patch cosine, (N, D)."""
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return (stored.of("cls", unit) * stored.of("patch", unit)).mean(1)


def reference_cosine_channels(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site), x in stored.tokens.items():
        size = np.abs(_contributions(stored, x))
        shares = size / size.sum(-1, keepdims=True)
        numbers["top1_share", block, site, "cls-patch", None] = shares.max(-1)
        numbers["effective_channels", block, site, "cls-patch", None] = np.prod(shares**-shares, axis=-1)
    return numbers


def reference_arrays(stored: Stored) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    rows: dict[str, list[np.ndarray]] = {}
    for (_, site), x in sorted(stored.tokens.items(), key=lambda item: item[0][0] or 0):
        rows.setdefault(site, []).append(_contributions(stored, x).mean(0))
    for (block, site), norm in sorted(stored.norms.items(), key=lambda item: item[0][0] or 0):
        fall = _contributions(stored, norm.x) - _contributions(stored, stored.tokens[block, site])
        rows.setdefault(f"fall_{site}", []).append(fall.mean(0))
    return {
        name: (("channel",), values[0]) if name.endswith("final_norm") else (("block", "channel"), np.stack(values))
        for name, values in rows.items()
    }
