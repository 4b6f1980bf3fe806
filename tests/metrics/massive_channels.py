"""Channel means of |x| and x² over all tokens of a group and all images at once."""

import numpy as np

from tests.metrics._stored import RESIDUALS, Number, Stored

LEVEL = "set"


def _tokens(stored: Stored, group: str, x: np.ndarray) -> np.ndarray:
    return stored.of(group, x).reshape(-1, x.shape[-1])


def reference_massive_channels(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site), x in stored.tokens.items():
        for group in stored.groups if site in RESIDUALS else ():
            tokens = _tokens(stored, group, x)
            size = np.abs(tokens).mean(0)
            order = sorted(range(len(size)), key=lambda channel: -size[channel])
            numbers["max_over_median", block, site, group, None] = size[order[0]] / np.median(size)
            energy = (tokens[:, order[:3]] ** 2).sum() / (tokens**2).sum()
            numbers["top3_energy", block, site, group, None] = energy
    return numbers


def reference_arrays(stored: Stored) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    rows: dict[str, list[np.ndarray]] = {}
    for (_, site), x in sorted(stored.tokens.items(), key=lambda item: item[0][0] or 0):
        for group in stored.groups if site in RESIDUALS else ():
            rows.setdefault(f"{group}_{site}", []).append(np.abs(_tokens(stored, group, x)).mean(0))
    found = {}
    for name, sizes in rows.items():
        found[f"magnitude_{name}"] = (("block", "channel"), np.stack(sizes))
        found[f"channels_{name}"] = (("block", "rank"), np.argsort(-np.stack(sizes), axis=-1)[:, :3])
    return found
