"""Bootstrap draws of the test images of probes, the same for all models, for intervals over seeds and images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tokenlens.probes import ProbeResult
from tokenlens.probes.segmentation import iou_and_accuracy
from tokenlens.statistics.bootstrap import bootstrap_draws

MODEL = ("setting", "variant", "seed")
"""Columns that identify a trained model."""


def draw_scores(result: ProbeResult) -> np.ndarray | None:
    """Return a probe's score in percentage points for each draw of its test images; None without numbers per image.

    Every model's images are drawn alike, so the draws of two models on the same images can be subtracted.
    """
    table = result.per_image
    if "correct" in table:
        hits_N1 = table[["correct"]].to_numpy(dtype=float)
        return 100 * bootstrap_draws(hits_N1, lambda sums: sums / len(hits_N1))[:, 0]
    counts = [table.filter(regex=f"^{kind}: ").to_numpy(dtype=float) for kind in ("hit", "labelled", "predicted")]
    if len(table) and counts[0].shape[1]:
        return 100 * bootstrap_draws(np.concatenate(counts, axis=1), iou_and_accuracy)[:, 0]
    return None


def image_variance(drawn: pd.DataFrame, rows: pd.DataFrame, weights: Mapping[str, float]) -> float:
    """Compute the variance over images of a weighted sum of the variants' mean scores.

    Args:
        drawn: a row per model and measurement with the draws of its score; indexed by columns that ``rows`` has.
        rows: the rows of numbers behind the scores.
        weights: of each variant, e.g. 1 and −1 for a difference.

    Returns:
        NaN if some of the rows have no draws.
    """
    keys = pd.MultiIndex.from_frame(rows[list(drawn.index.names)])
    if not keys.isin(drawn.index).all():
        return float("nan")
    means = drawn.loc[keys].groupby("variant").mean()
    return float(sum(weight * means.loc[variant] for variant, weight in weights.items()).var(ddof=1))
