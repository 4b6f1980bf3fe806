"""Numbers of trained models in one table, and their differences over seeds.

Numbers are only subtracted within a setting and a measurement (the same task, source, resolution, data and measure),
seed by seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tokenlens.statistics.seed_effects import Effect, estimate_effect
from tokenlens.verification.image_draws import image_variance
from tokenlens.verification.variants import PAPER, STANDARD, TWIN

MEASUREMENT = ("task", "source", "resolution", "data", "measure")
"""Columns that identify a measurement. Only numbers of one measurement are compared."""

NUMBERS = (
    *("setting", "variant", "preset", "objective", "model", "seed"),
    *MEASUREMENT,
    *("value", "n", "ci_low", "ci_high", "draws"),
)
"""Columns of a table of numbers, with a row per trained model and measurement. A ``setting`` is everything that
comparable models have in common; ``value`` and its interval over images are percentage points for mIoU and accuracy,
means over ``draws`` of the probe."""

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


def average_draws(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over a probe's draws of one model and measurement, with their number in ``draws``."""
    if numbers.empty:
        return numbers
    keys = [name for name in NUMBERS if name not in ("value", "n", "ci_low", "ci_high", "draws")]
    grouped = numbers.groupby(keys, sort=False, as_index=False, dropna=False)
    means = grouped.agg(
        value=("value", "mean"),
        n=("n", "min"),
        ci_low=("ci_low", "mean"),
        ci_high=("ci_high", "mean"),
        draws=("value", "size"),
    )
    return means[list(NUMBERS)]


def variants_of(numbers: pd.DataFrame, setting: str) -> set[str]:
    """Return the names of the variants in a setting."""
    return set(numbers.loc[numbers["setting"] == setting, "variant"])


def compare_scores(
    numbers: pd.DataFrame,
    setting: str,
    variant: str,
    baseline: str,
    measure: str,
    confidence: float = 0.95,
    drawn: pd.DataFrame | None = None,
) -> Effect:
    """Compute how much higher one variant scores than another in one setting, over seeds and test images.

    A model's score is the mean of a measure over all measurements in the setting. Models that lack one of them, or some
    of its draws, are left out, because their mean would be another number.

    Args:
        numbers: a table with the columns of ``NUMBERS``.
        setting: the setting.
        variant: the variant.
        baseline: the variant that it is compared with.
        measure: ``"mIoU"``, ``"accuracy"`` (of CLS, where there is any) or ``"loss"``.
        confidence: of the interval.
        drawn: bootstrap draws of the test images, see ``tokenlens.verification.image_draws``; None for an interval over
            seeds only.
    """
    scores, rows = _scores_by_seed(numbers, setting, measure)
    scored = scores.get(variant, {}), scores.get(baseline, {})
    effect = estimate_effect(*scored, confidence)
    if drawn is None or drawn.empty or measure == LOSS or not effect.seeds:
        return effect
    used = [set(effect.each)] * 2 if effect.paired else [set(one) for one in scored]
    kept = [
        (rows["variant"] == name) & rows["seed"].isin(one) for name, one in zip((variant, baseline), used, strict=True)
    ]
    variance = image_variance(drawn, rows[kept[0] | kept[1]], {variant: 1, baseline: -1})
    return estimate_effect(*scored, confidence, variance)


def contrast_scores(
    numbers: pd.DataFrame, setting: str, weights: Mapping[str, float], measure: str, drawn: pd.DataFrame | None = None
) -> Effect:
    """Compute a weighted sum of the variants' scores in one setting, over seeds that all of them have.

    Args:
        numbers, setting, measure, drawn: see ``compare_scores``.
        weights: of each variant; they add up to 0.
    """
    scores, rows = _scores_by_seed(numbers, setting, measure)
    common = sorted(set.intersection(*(set(scores.get(variant, {})) for variant in weights)))
    sums = {seed: sum(weight * scores[name][seed] for name, weight in weights.items()) for seed in common}
    zeros = dict.fromkeys(sums, 0.0)
    if drawn is None or drawn.empty or not sums:
        return estimate_effect(sums, zeros)
    behind = rows[rows["variant"].isin(list(weights)) & rows["seed"].isin(common)]
    return estimate_effect(sums, zeros, image_variance=image_variance(drawn, behind, weights))


def _scores_by_seed(
    numbers: pd.DataFrame, setting: str, measure: str
) -> tuple[dict[str, dict[int, float]], pd.DataFrame]:
    """Return the score of each complete model by variant and seed, and the rows of numbers behind all scores."""
    rows = select_measure(numbers, setting, measure)
    rows = rows[rows["draws"] == rows.groupby(list(MEASUREMENT))["draws"].transform("max")]
    table = rows.pivot_table(index=["variant", "seed"], columns=list(MEASUREMENT), values="value", aggfunc="mean")
    scores: dict[str, dict[int, float]] = {}
    for row in table.dropna().mean(axis=1).rename("score").reset_index().itertuples(index=False):
        scores.setdefault(str(row.variant), {})[int(row.seed)] = float(row.score)
    return scores, rows


def select_measure(numbers: pd.DataFrame, setting: str, measure: str) -> pd.DataFrame:
    """Return the rows that a score averages: of accuracies only those of CLS, if there are any."""
    rows = numbers[(numbers["setting"] == setting) & (numbers["measure"] == measure)]
    if measure == CLASSES and (rows["source"] == "cls").any():
        rows = rows[rows["source"] == "cls"]
    return rows[rows["source"] == "loss"] if measure == LOSS else rows


def count_test_images(numbers: pd.DataFrame, setting: str) -> int:
    """Return the number of test images of the mean IoU in a setting."""
    n = select_measure(numbers, setting, DENSE)["n"]
    return int(n.max()) if len(n) else 0


def tabulate_effects(numbers: pd.DataFrame, drawn: pd.DataFrame | None = None) -> pd.DataFrame:
    """Compare every variant with standard and with paper, per measurement and averaged over measurements.

    Args:
        numbers: a table with the columns of ``NUMBERS``.
        drawn: see ``compare_scores``.

    Returns:
        A row per setting, variant, other variant (``against``), measure and measurement (``cell``; ``"mean"`` for their
        mean, which F3 judges), with the columns of ``EFFECTS``: the difference with its interval, ``sd`` of the
        differences over seeds, ``p``, and ``q`` (Benjamini and Hochberg over the means of one setting and measure).
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
                effect = compare_scores(some, setting, variant, against, measure, drawn=drawn)
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
