"""Numbers of trained models in one table, and their differences over seeds.

Only numbers of the same cell (task, source, resolution, data, measure) and the same setting are subtracted, seed by
seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tokenlens.statistics.seed_effects import MIN_SEEDS, Effect, effect_of

NUMBERS = (
    "setting",
    "variant",
    "preset",
    "objective",
    "model",
    "seed",
    "task",
    "source",
    "resolution",
    "data",
    "measure",
    "value",
    "n",
    "ci_low",
    "ci_high",
)
"""Columns of a table of numbers: a row for each trained model and thing that was measured of it. ``setting`` is all
that models have in common which may be set against each other; ``value`` and its interval over images are percentage
points where ``measure`` is mIoU or accuracy."""

CELL = ("task", "source", "resolution", "data", "measure")
"""What of a model was measured: only numbers of the same cell are set against each other."""

CONTINUED = (
    "setting",
    "variant",
    *CELL,
    "start",
    "start_low",
    "start_high",
    "start_n",
    "mean",
    "difference",
    "ci_low",
    "ci_high",
    "sd",
    "seeds",
)
"""Columns of ``continued``."""

DENSE, CLASSES, LOSS = "mIoU", "accuracy", "loss"

STANDARD, PAPER, TWIN = "standard", "paper", "twin"
"""``twin`` is a second standard model, of another seed, in the place of the specialized one: a control."""


def variants_of(numbers: pd.DataFrame, setting: str) -> set[str]:
    """Names of the variants that a setting has."""
    return set(numbers.loc[numbers["setting"] == setting, "variant"])


def score_effect(
    numbers: pd.DataFrame, setting: str, variant: str, baseline: str, measure: str, confidence: float = 0.95
) -> Effect:
    """How much one variant's score is above another's in one setting.

    A model's score is the mean of a measure over all cells (resolutions, probes) that the setting has of it. Models
    that lack some cell are left out: a mean over other cells would be another number.

    Args:
        measure: ``"mIoU"``, ``"accuracy"`` (of CLS, where there is any) or ``"loss"``.
    """
    cells = cells_of(numbers, setting, measure)
    scores = cells.pivot_table(index=["variant", "seed"], columns=list(CELL), values="value", aggfunc="mean")
    complete = scores.dropna().mean(axis=1)

    def of(name: str) -> dict[int, float]:
        present = name in complete.index.get_level_values("variant") if len(complete) else False
        return {int(seed): float(value) for seed, value in complete.loc[name].items()} if present else {}

    return effect_of(of(variant), of(baseline), confidence)


def cells_of(numbers: pd.DataFrame, setting: str, measure: str) -> pd.DataFrame:
    """The rows of a setting that a measure's mean is taken over: of the accuracies those of CLS, where there are "
    "any."""
    rows = numbers[(numbers["setting"] == setting) & (numbers["measure"] == measure)]
    if measure == CLASSES and (rows["source"] == "cls").any():
        rows = rows[rows["source"] == "cls"]
    return rows[rows["source"] == "loss"] if measure == LOSS else rows


def effects(numbers: pd.DataFrame) -> pd.DataFrame:
    """Every variant against standard and against paper: cell by cell, and a measure's mean over cells.

    Returns:
        A row for each setting, variant, other variant, measure and cell (``"mean"`` over all cells that F3 takes): the
        difference with its interval over seeds, ``sd`` of the differences, ``p``, ``q`` (Benjamini and Hochberg over
        the means of one setting and measure), ``seeds``, ``paired``, ``left_out`` and ``detectable``.
    """
    rows: list[dict[str, Any]] = []
    for setting in dict.fromkeys(numbers["setting"]):
        mine = numbers[numbers["setting"] == setting]
        names = list(dict.fromkeys(mine["variant"]))
        pairs = [
            (variant, other)
            for other in (STANDARD, PAPER)
            if other in names
            for variant in names
            if variant not in (STANDARD, other) and not (variant == TWIN and other == PAPER)
        ]
        for measure, cell, some in _by_cell(mine, setting):
            for variant, against in pairs:
                effect = score_effect(some, setting, variant, against, measure)
                if effect.seeds:
                    rows.append(
                        {
                            "setting": setting,
                            "variant": variant,
                            "against": against,
                            "measure": measure,
                            "cell": cell,
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
                    )
    columns = [
        "setting",
        "variant",
        "against",
        "measure",
        "cell",
        "difference",
        "ci_low",
        "ci_high",
        "sd",
        "p",
        "q",
        "seeds",
        "paired",
        "left_out",
        "detectable",
    ]
    table = pd.DataFrame(rows, columns=columns)
    table["q"] = np.nan
    tested = table[(table["cell"] == "mean") & table["p"].notna()]
    for _, family in tested.groupby(["setting", "measure"]):
        table.loc[family.index, "q"] = stats.false_discovery_control(family["p"].astype(float))
    return table


def _by_cell(numbers: pd.DataFrame, setting: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Measure, name of the cell and its rows; first the mean over all cells of a measure."""
    for measure in dict.fromkeys(numbers["measure"]):
        yield measure, "mean", numbers
        of = numbers[numbers["measure"] == measure]
        for key, rows in of.groupby(list(CELL), sort=False):
            task, source, resolution, data, _ = key
            # The rows of a cell alone, under a source that the mean would not pass over.
            alone = rows.assign(source="loss" if measure == LOSS else rows["source"])
            several = of[(of["task"] == task) & (of["source"] == source) & (of["resolution"] == resolution)]
            which = f" ({data})" if several["data"].nunique() > 1 else ""
            yield measure, " ".join(filter(None, [task, source, f"{resolution} px"])) + which, alone


def differences(numbers: pd.DataFrame) -> pd.DataFrame:
    """Every pair of one seed, cell by cell: a variant's value less the standard model's.

    Returns:
        The columns ``setting variant seed``, those of ``CELL``, ``value baseline difference``.
    """
    keys = ["setting", "seed", *CELL]
    standard = numbers[numbers["variant"] == STANDARD][[*keys, "value"]].rename(columns={"value": "baseline"})
    others = numbers[numbers["variant"] != STANDARD][["variant", *keys, "value"]]
    both = others.merge(standard, on=keys)
    both["difference"] = both["value"] - both["baseline"]
    return both[["setting", "variant", "seed", *CELL, "value", "baseline", "difference"]]


def continued(numbers: pd.DataFrame, start: pd.DataFrame) -> pd.DataFrame:
    """What training on from a start did to each number: every variant less the start, which is one model.

    Args:
        numbers: of the trained models.
        start: of the start, in the same settings; both with the columns of ``NUMBERS``.

    Returns:
        The columns of ``CONTINUED``: the start's number with its interval over images, the variant's mean over seeds,
        and their difference with its 95 % interval, Student's t over seeds. Nothing is judged on them.
    """
    rows = []
    for before in start.to_dict("records"):
        of = {name: before[name] for name in ("setting", *CELL)}
        mine = numbers[(numbers[list(of)] == pd.Series(of)).all(axis=1)]
        for variant, models in mine.groupby("variant", sort=False):
            values = {int(seed): float(value) for seed, value in zip(models["seed"], models["value"], strict=True)}
            effect = effect_of(values, dict.fromkeys(values, float(before["value"])))
            rows.append(
                {
                    **of,
                    "variant": variant,
                    "start": before["value"],
                    "start_low": before["ci_low"],
                    "start_high": before["ci_high"],
                    "start_n": before["n"],
                    "mean": float(np.mean([*values.values()])),
                    "difference": effect.difference,
                    "ci_low": effect.low,
                    "ci_high": effect.high,
                    "sd": effect.sd,
                    "seeds": effect.seeds,
                }
            )
    return pd.DataFrame(rows, columns=list(CONTINUED))


# -- words


def points(value: float) -> str:
    """A difference of percentage points with its sign.

    >>> points(-0.04), points(1.26)
    ('0.0', '+1.3')
    """
    return signed(value, 1)


def signed(value: float, decimals: int) -> str:
    """A difference with its sign, a true minus and no negative zero; "?" for NaN."""
    if math.isnan(value):
        return "?"
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def interval_text(effect: Effect, decimals: int = 1) -> str:
    """An effect's interval in words."""
    if math.isnan(effect.low):
        return "no interval"
    return f"95 % interval {signed(effect.low, decimals)} to {signed(effect.high, decimals)}"


def seeds_text(effect: Effect) -> str:
    """How many seeds are behind an effect, what each of them says, and which were left out."""
    count = f"{effect.seeds} seed{'s' if effect.seeds != 1 else ''}"
    if not effect.paired:
        return f"{count} of each at least, unpaired: no {MIN_SEEDS} seeds are in both"
    each = ", ".join(f"{points(value)}" for value in effect.each.values())
    text = f"{count}, paired" + (f": {each}" if 0 < effect.seeds <= 10 else "")
    if effect.left_out:
        many = len(effect.left_out) > 1
        text += f"; seed{'s' if many else ''} {listed([str(s) for s in effect.left_out])} left out, without a partner"
    return text


def listed(words: Sequence[str]) -> str:
    """Words with commas, and "and" before the last."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
