"""s_d = (a_cls − a_patch)/(a_cls + a_patch) with a = E|x_d| over the whole set, and its summaries over channels."""

import numpy as np
from scipy import stats

from tests.metrics._stored import Number, Stored

LEVEL = "set"
NEEDS = ("cls",)


def _magnitudes(stored: Stored) -> dict[tuple[int | None, str, str], tuple[np.ndarray, np.ndarray]]:
    """Return E|CLS_d| and E|patch_d| by block, site and side of the norm, (D,) each."""
    found = {}
    for (block, site), norm in stored.norms.items():
        for side, x in (("input", norm.x), ("output", stored.tokens[block, site])):
            both = (np.abs(stored.of(group, x)).reshape(-1, x.shape[-1]).mean(0) for group in ("cls", "patch"))
            found[block, site, side] = tuple(both)
    return found


def reference_dimension_selectivity(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site, side), (cls, patch) in _magnitudes(stored).items():
        s = np.abs((cls - patch) / (cls + patch))
        top = max(1, round(len(s) / 20))
        both = set(np.argsort(cls)[-top:]) & set(np.argsort(patch)[-top:])
        values = {"mean": s.mean(), "share": (s > 0.5).mean(), "top_overlap": len(both) / top}
        gamma = stored.norms[block, site].weight_patch
        if gamma is not None:
            constant = np.ptp(np.abs(gamma)) == 0
            values["gamma_correlation"] = np.nan if constant else stats.spearmanr(np.abs(gamma), s).statistic
        numbers |= {(f"{side}_{part}", block, site, "cls-patch", None): float(v) for part, v in values.items()}
    return numbers


def reference_arrays(stored: Stored) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    rows: dict[str, list[np.ndarray]] = {}
    for (_, site, side), (cls, patch) in sorted(_magnitudes(stored).items(), key=lambda item: item[0][0] or 0):
        rows.setdefault(f"{side}_{site}", []).append((cls - patch) / (cls + patch))
        rows.setdefault(f"cls_{side}_{site}", []).append(cls)
        rows.setdefault(f"patch_{side}_{site}", []).append(patch)
    return {
        name: (("channel",), values[0]) if name.endswith("final_norm") else (("block", "channel"), np.stack(values))
        for name, values in rows.items()
    }
