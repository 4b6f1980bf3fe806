"""Numbers of trained models in one table, and their differences over seeds.

Numbers are only subtracted within a setting and a measurement (the same task, source, resolution, data and measure),
seed by seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tokenlens.statistics.seed_effects import Effect, estimate_effect
from tokenlens.verification.variants import PAPER, STANDARD, TWIN

MEASUREMENT = ("task", "source", "resolution", "data", "measure")
"""Columns that identify a measurement. Only numbers of one measurement are compared."""

NUMBERS = (
    *("setting", "variant", "preset", "objective", "model", "seed"),
    *MEASUREMENT,
    *("value", "n", "ci_low", "ci_high"),
)
"""Columns of a table of numbers, with a row per trained model and measurement. A ``setting`` is everything that
comparable models have in common; ``value`` and its interval over images are percentage points for mIoU and accuracy."""

EFFECTS = (
    *("setting", "variant", "against", "measure", "cell", "difference", "ci_low", "ci_high"),
    *("sd", "p", "q", "seeds", "paired", "left_out", "detectable"),
)
"""Columns of ``tabulate_effects``."""

DIFFERENCES = ("setting", "variant", "seed", *MEASUREMENT, "value", "baseline", "difference")
"""Columns of ``tabulate_differences``."""

CONTINUED = (
    *("setting", "variant", *MEASUREMENT, "start", "start_low", "start_high", "start_n"),
    *("mean", "difference", "ci_low", "ci_high", "sd", "seeds"),
)
"""Columns of ``compare_to_start``."""

DENSE, CLASSES, LOSS = "mIoU", "accuracy", "loss"
"""Measures: mean IoU of segmentation, accuracy of classification, and the loss at the end of training."""


def variants_of(numbers: pd.DataFrame, setting: str) -> set[str]:
    """Return the names of the variants in a setting."""
    return set(numbers.loc[numbers["setting"] == setting, "variant"])


def compare_scores(
    numbers: pd.DataFrame, setting: str, variant: str, baseline: str, measure: str, confidence: float = 0.95
) -> Effect:
    """Compute how much higher one variant scores than another in one setting, over seeds.

    A model's score is the mean of a measure over all measurements in the setting. Models that lack one of them are left
    out, because their mean would be another number.

    Args:
        numbers: a table with the columns of ``NUMBERS``.
        setting: the setting.
        variant: the variant.
        baseline: the variant that it is compared with.
        measure: ``"mIoU"``, ``"accuracy"`` (of CLS, where there is any) or ``"loss"``.
        confidence: of the interval.
    """
    rows = select_measure(numbers, setting, measure)
    scores = rows.pivot_table(index=["variant", "seed"], columns=list(MEASUREMENT), values="value", aggfunc="mean")
    complete = scores.dropna().mean(axis=1)

    def by_seed(name: str) -> dict[int, float]:
        present = name in complete.index.get_level_values("variant") if len(complete) else False
        return {int(seed): float(value) for seed, value in complete.loc[name].items()} if present else {}

    return estimate_effect(by_seed(variant), by_seed(baseline), confidence)


def select_measure(numbers: pd.DataFrame, setting: str, measure: str) -> pd.DataFrame:
    """Return the rows that a score averages: of accuracies only those of CLS, if there are any."""
    rows = numbers[(numbers["setting"] == setting) & (numbers["measure"] == measure)]
    if measure == CLASSES and (rows["source"] == "cls").any():
        rows = rows[rows["source"] == "cls"]
    return rows[rows["source"] == "loss"] if measure == LOSS else rows


def tabulate_effects(numbers: pd.DataFrame) -> pd.DataFrame:
    """Compare every variant with standard and with paper, per measurement and averaged over measurements.

    Returns:
        A row per setting, variant, other variant (``against``), measure and measurement (``cell``; ``"mean"`` for their
        mean, which F3 judges), with the columns of ``EFFECTS``: the difference with its interval over seeds, ``sd`` of
        the differences, ``p``, and ``q`` (Benjamini and Hochberg over the means of one setting and measure).
    """
    rows: list[dict[str, Any]] = []
    for setting in dict.fromkeys(numbers["setting"]):
        inside = numbers[numbers["setting"] == setting]
        variants = list(dict.fromkeys(inside["variant"]))
        compared = [
            (variant, other)
            for other in (STANDARD, PAPER)
            if other in variants
            for variant in variants
            if variant not in (STANDARD, other) and not (variant == TWIN and other == PAPER)
        ]
        for measure, measurement, some in _measurements(inside):
            for variant, against in compared:
                effect = compare_scores(some, setting, variant, against, measure)
                if effect.seeds:
                    compares = {"setting": setting, "variant": variant, "against": against}
                    rows.append({**compares, "measure": measure, "cell": measurement, **effect_columns(effect)})
    table = pd.DataFrame(rows, columns=list(EFFECTS))
    table["q"] = np.nan
    tested = table[(table["cell"] == "mean") & table["p"].notna()]
    for _, family in tested.groupby(["setting", "measure"]):
        table.loc[family.index, "q"] = stats.false_discovery_control(family["p"].astype(float))
    return table


def effect_columns(effect: Effect) -> dict[str, Any]:
    """Return an effect by the names of the tables' columns; each table has some of them."""
    return {
        "difference": effect.difference,
        "ci_low": effect.low,
        "ci_high": effect.high,
        "sd": effect.sd,
        "p": effect.p,
        "seeds": effect.seeds,
        "paired": effect.paired,
        "left_out": ", ".join(map(str, effect.left_out)),
        "detectable": effect.detectable,
    }


def _measurements(numbers: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield measure, name of the measurement and its rows; the mean of a measure comes first."""
    for measure in dict.fromkeys(numbers["measure"]):
        yield measure, "mean", numbers
        same = numbers[numbers["measure"] == measure]
        for (task, source, resolution, data, _), rows in same.groupby(list(MEASUREMENT), sort=False):
            # select_measure drops losses of other sources from the mean; on its own each of them counts.
            alone = rows.assign(source="loss" if measure == LOSS else rows["source"])
            similar = same[(same["task"] == task) & (same["source"] == source) & (same["resolution"] == resolution)]
            which = f" ({data})" if similar["data"].nunique() > 1 else ""
            yield measure, " ".join(filter(None, [task, source, f"{resolution} px"])) + which, alone


def tabulate_differences(numbers: pd.DataFrame) -> pd.DataFrame:
    """Subtract the standard model's value from each variant's, per seed and measurement.

    Returns:
        The columns of ``DIFFERENCES``.
    """
    keys = ["setting", "seed", *MEASUREMENT]
    standard = numbers[numbers["variant"] == STANDARD][[*keys, "value"]].rename(columns={"value": "baseline"})
    others = numbers[numbers["variant"] != STANDARD][["variant", *keys, "value"]]
    both = others.merge(standard, on=keys)
    both["difference"] = both["value"] - both["baseline"]
    return both[list(DIFFERENCES)]


def compare_to_start(numbers: pd.DataFrame, start: pd.DataFrame) -> pd.DataFrame:
    """Compare every variant with the start that it was trained from, which is a single model.

    Args:
        numbers: numbers of the trained models.
        start: numbers of the start in the same settings; both with the columns of ``NUMBERS``.

    Returns:
        The columns of ``CONTINUED``: the start's number with its interval over images, the variant's mean over seeds,
        and their difference with its 95 % interval, Student's t over seeds. No finding is judged on them.
    """
    rows = []
    for before in start.to_dict("records"):
        measurement = {name: before[name] for name in ("setting", *MEASUREMENT)}
        same = numbers[(numbers[list(measurement)] == pd.Series(measurement)).all(axis=1)]
        for variant, models in same.groupby("variant", sort=False):
            values = {int(seed): float(value) for seed, value in zip(models["seed"], models["value"], strict=True)}
            effect = estimate_effect(values, dict.fromkeys(values, float(before["value"])))
            rows.append(
                {
                    **measurement,
                    "variant": variant,
                    "start": before["value"],
                    "start_low": before["ci_low"],
                    "start_high": before["ci_high"],
                    "start_n": before["n"],
                    "mean": float(np.mean([*values.values()])),
                    **effect_columns(effect),
                }
            )
    return pd.DataFrame(rows, columns=list(CONTINUED))
