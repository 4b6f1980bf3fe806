"""Similarity of the final features of several models, on the images that they have in common."""
# Shapes: n images, D channels.

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tokenlens.analysis.analysis import Analysis
from tokenlens.comparison.pairing import hashes_of, matching_positions
from tokenlens.metrics.cka import Array, cka_with_interval, gram
from tokenlens.storage.wording import counted

COLUMNS = ("label_1", "label_2", "group", "value", "ci_low", "ci_high", "n", "unit")
GROUPS = ("cls", "patch")
MIN_IMAGES = 4
"""The fewest images for which debiased CKA is defined."""


def feature_similarity(analyses: Mapping[str, Analysis]) -> tuple[pd.DataFrame, str]:
    """Compute debiased linear CKA between the final features of every two models, about [0, 1]; 0 if unrelated.

    Uses the images that both models have features of (the first 256 of each), matched by hash; for patches the mean
    patch.

    Returns:
        A frame with one row per ordered pair of labels (a label with itself included) and ``group``, and a sentence on
        what is missing and why, or an empty string.
    """
    features, missing = {}, []
    for label, analysis in analyses.items():
        if "cka/cls_features" in analysis.arrays:
            features[label] = [analysis.arrays[f"cka/{group}_features"].values.astype(np.float64) for group in GROUPS]
        else:
            missing.append(f"{label} has no features ({_missing_reason(analysis)})")
    values: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one, two in itertools.combinations(features, 2):
        names = [hashes_of(analyses[label])[: len(features[label][0])] for label in (one, two)]
        rows = matching_positions(*names)
        if len(rows[0]) < MIN_IMAGES:
            missing.append(f"{one} and {two} have {counted(len(rows[0]), 'image')} in common, CKA needs {MIN_IMAGES}")
            continue
        sides = [[feature_nD[at] for feature_nD in features[label]] for label, at in zip((one, two), rows, strict=True)]
        values[one, two] = values[two, one] = [_cka(x_nD, y_nD) for x_nD, y_nD in zip(*sides, strict=True)]
    for label in features if values else ():
        itself = {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0, "n": len(features[label][0])}
        values[label, label] = [itself] * len(GROUPS)
    found = [
        {"label_1": one, "label_2": two, "group": group, **values[one, two][i], "unit": "CKA"}
        for one, two in itertools.product(features, features)
        if (one, two) in values
        for i, group in enumerate(GROUPS)
    ]
    kinds = dict.fromkeys(("value", "ci_low", "ci_high"), "float64") | {"n": "int64"}
    return pd.DataFrame(found, columns=list(COLUMNS)).astype(kinds), "; ".join(missing)


def _cka(x_nD: Array, y_nD: Array) -> dict[str, Any]:
    gram_2nn = np.concatenate([gram(x_nD[None]), gram(y_nD[None])])
    value, low, high = cka_with_interval(gram_2nn, np.arange(len(x_nD)))
    return {"value": value[0, 1], "ci_low": low[0, 1], "ci_high": high[0, 1], "n": len(x_nD)}


def _missing_reason(analysis: Analysis) -> str:
    if "cka" in analysis.not_applicable:
        return f"cka does not apply: {analysis.not_applicable['cka']}"
    if "cka" in analysis.metrics:
        return "its run was written by a version that did not keep them: analyze the model again"
    return "cka was not computed"
