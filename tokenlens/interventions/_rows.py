"""The table of an intervention: for each effect its mean, spread and interval over images."""

# Shapes: N images, E effects, S numbers that are summed over images for the score of a probe.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tokenlens.interventions._effects import UNITS, EffectKey, bounds_of
from tokenlens.interventions._intervention import EFFECT_COLUMNS
from tokenlens.interventions.base import Condition
from tokenlens.probes import Probe
from tokenlens.statistics.bootstrap import bootstrap_interval
from tokenlens.statistics.moments import Moments, cut_interval


def effect_rows(
    values: Mapping[tuple[Condition, EffectKey], np.ndarray],
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Return a row for each effect, and the values per image, (N, E)."""
    keys = list(values)
    values_NE = np.stack([values[key] for key in keys], axis=1)
    moments = Moments()
    moments.update(values_NE)
    bounds_E2 = np.array([bounds_of(metric, part) for _, (metric, part, _) in keys])
    low, high = cut_interval(moments.mean, *moments.interval(), bounds_E2)
    rows = [
        _row(condition, effect, moments.mean[i], moments.sd[i], moments.n[i], low[i], high[i])
        for i, (condition, effect) in enumerate(keys)
    ]
    return rows, values_NE


def score_rows(
    probe: Probe, counts: Mapping[Condition | None, np.ndarray], counted: Mapping[Condition, np.ndarray]
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Return the rows of a fitted probe's score after each replacement and its change, and the values per image.

    The interval is a bootstrap over images, drawn alike for both passes, so that of the change is paired.

    Args:
        probe: the probe.
        counts: numbers per image whose sums give the score, (N, S), of each condition and, under None, untouched.
        counted: which images count under each condition, (N,) bool.

    Returns:
        The rows, and values per image whose means are the values; NaN if the score is no mean over images (mean IoU).
    """
    rows, columns = [], []
    for condition, counts_NS in counts.items():
        if condition is None:
            continue
        kept = counted[condition]
        n, both_N2S = int(kept.sum()), np.stack([counts[None], counts_NS], axis=1)

        def measure(sums_X2: np.ndarray, shape: tuple[int, ...] = both_N2S.shape[1:]) -> np.ndarray:
            before, after = (probe.measure(sums) for sums in sums_X2.reshape(-1, *shape).transpose(1, 0, 2))
            return np.stack([after, after - before], axis=1)

        flat_NS = both_N2S[kept].reshape(n, -1)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = measure(flat_NS.sum(0, keepdims=True))[0] if n else np.full(2, np.nan)
            low, high = bootstrap_interval(flat_NS, measure) if n else (np.full(2, np.nan),) * 2
            single_N2 = measure(both_N2S.reshape(len(both_N2S), -1))
        single_N2[~kept] = np.nan
        is_mean = n > 0 and np.allclose(single_N2[kept].mean(0), value, atol=1e-12, equal_nan=False)
        single_N2 = single_N2 if is_mean else np.full_like(single_N2, np.nan)
        sd = np.nanstd(single_N2, axis=0, ddof=1) if is_mean and n > 1 else np.full(2, np.nan)
        for i, part in enumerate(("after", "change")):
            rows.append(_row(condition, ("probe_score", part, ""), value[i], sd[i], n, low[i], high[i]))
            columns.append(single_N2[:, i])
    return rows, np.stack(columns, axis=1)


def to_table(rows: list[dict[str, Any]], model: str) -> pd.DataFrame:
    """Return rows as a frame with the columns of ``EFFECT_COLUMNS``, those of one condition together."""
    table = pd.DataFrame(rows).assign(model=model, head=pd.NA)
    texts = dict.fromkeys(("model", "replace", "by", "metric", "part", "site", "group", "unit"), "str")
    return table.astype(texts | {"block": "Int64", "head": "Int64", "n": "int64"})[list(EFFECT_COLUMNS)]


def _row(
    condition: Condition, effect: EffectKey, value: float, sd: float, n: int, low: float, high: float
) -> dict[str, Any]:
    metric, part, group = effect
    replace, by, site, block = condition.key()
    names = {"replace": replace, "by": by, "metric": metric, "part": part, "block": block, "site": site, "group": group}
    numbers = {"value": value, "sd": sd, "n": n, "ci_low": low, "ci_high": high}
    return names | numbers | {"unit": UNITS[metric]}
