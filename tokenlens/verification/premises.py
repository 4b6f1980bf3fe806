"""Premises of F3 and F5: what must be true of trained models before a difference between them says anything.

docs/decisions/0016-verdicts-that-can-be-trusted.md gives the reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.findings import Verdict
from tokenlens.verification.numbers import CLASSES, DENSE, compare_to_start, select_measure, variants_of
from tokenlens.verification.rules import ABOUT_ZERO, LEAST_APPLICABLE, MIN_DISTANCE, MIN_FALL
from tokenlens.verification.runs import DRAWN, RunNumbers
from tokenlens.verification.trained_models import TrainedModel
from tokenlens.verification.variants import STANDARD, TWIN
from tokenlens.verification.wording import format_points


def find_unmet_premises(found: RunNumbers) -> dict[tuple[str, str], list[str]]:
    """Return the premises that each variant's comparison with the standard models of its setting fails."""
    unmet: dict[tuple[str, str], list[str]] = {}
    continued = compare_to_start(found.numbers, found.start_numbers)
    for setting in dict.fromkeys(found.numbers["setting"]):
        models = [model for model in found.models if model.setting == setting]
        for variant in variants_of(found.numbers, setting) - {STANDARD}:
            reasons = [
                _no_separation(_of(found.analyses, setting, STANDARD)),
                None if variant == TWIN else _not_parted(_of(found.analyses, setting, variant)),
                *(_below_start(continued, setting, name) for name in (STANDARD, variant)),
                _heads_by_seed(models),
                _without_images(found, setting, variant),
            ]
            unmet[setting, variant] = [reason for reason in reasons if reason]
    return unmet


def judge_separation(analysis: Analysis) -> Verdict:
    """Judge F1(a) on one model: across norm1, CLS–patch cosine falls to about 0 or below.

    A block applies where the cosine before norm1 is at least ``ABOUT_ZERO``. The claim holds in it if, by the 95 %
    intervals over images, the cosine falls by at least ``MIN_FALL`` and ends at or below ``ABOUT_ZERO``. Supported: in
    more than half of the blocks that apply; not supported: it fails in at least half; not applicable: fewer than a
    third of the blocks apply, or the model has no such norm or is untrained.
    """
    table = analysis.table
    rows = table[
        (table["metric"] == "norm_differentiation") & (table["site"] == "norm1") & (table["group"] == "cls-patch")
    ]
    by_part = {part: rows[rows["part"] == part].set_index("block") for part in ("before", "after", "total")}
    before, after, fall = (by_part[part] for part in ("before", "after", "total"))
    applies = before.index[before["value"].astype(float) >= ABOUT_ZERO]
    if analysis.untrained or not len(applies) or len(applies) < LEAST_APPLICABLE * len(before):
        return "not applicable"
    ends, falls = after.loc[applies], fall.loc[applies]
    holds = (falls["ci_low"].astype(float) >= MIN_FALL) & (ends["ci_high"].astype(float) <= ABOUT_ZERO)
    fails = (falls["ci_high"].astype(float) < MIN_FALL) | (ends["ci_low"].astype(float) > ABOUT_ZERO)
    if 2 * int(holds.sum()) > len(applies):
        return "supported"
    return "not supported" if 2 * int(fails.sum()) >= len(applies) else "inconclusive"


def measure_distance(table: pd.DataFrame) -> dict[str, float]:
    """Return the mean distance between the two sets of weights of each component, without biases.

    Args:
        table: of an analysis, with the metric ``weight_distance``.
    """
    rows = table[(table["metric"] == "weight_distance") & (table["part"] == "relative_distance")]
    rows = rows[~rows["site"].str.endswith(".bias")]
    component = rows["site"].str.partition("/")[0]
    return {str(name): float(value) for name, value in rows["value"].astype(float).groupby(component).mean().items()}


def _of(analyses: Mapping[tuple[str, str, int], Analysis], setting: str, variant: str) -> list[Analysis]:
    return [analysis for (where, name, _), analysis in analyses.items() if (where, name) == (setting, variant)]


def _no_separation(standard: list[Analysis]) -> str | None:
    if not standard:
        return (
            "there are no analyses of the standard models, so it is unknown if their norm1 separates CLS from patches"
        )
    verdicts = [judge_separation(analysis) for analysis in standard]
    if 2 * verdicts.count("supported") > len(verdicts):
        return None
    counts = ", ".join(f"{verdict} in {verdicts.count(verdict)}" for verdict in dict.fromkeys(verdicts))
    return (
        f"norm1 of the standard models does not separate CLS from patches (F1(a): {counts} of {len(verdicts)} models)"
    )


def _not_parted(specialized: Iterable[Analysis]) -> str | None:
    each = [distances for one in specialized if (distances := measure_distance(one.table))]
    if not each:
        return "the distance between the two sets of weights was not measured"
    means = {name: float(np.mean([distances[name] for distances in each if name in distances])) for name in each[0]}
    if max(means.values()) >= MIN_DISTANCE:
        return None
    sizes = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    return f"the two sets of weights have hardly parted (relative distance: {sizes}; at least {MIN_DISTANCE:g} in one)"


def _below_start(continued: pd.DataFrame, setting: str, variant: str) -> str | None:
    rows = continued[
        (continued["setting"] == setting) & (continued["variant"] == variant) & (continued["measure"] == DENSE)
    ]
    change = float(rows["difference"].mean()) if len(rows) else 0.0
    if change >= 0:
        return None
    return f"the {variant} models end below their start (mean IoU {format_points(change)} points)"


def _heads_by_seed(models: Iterable[TrainedModel]) -> str | None:
    for model in models:
        recipe = model.run.recipe
        drawn = recipe.objective == "distill" and not recipe.objective_options.get("fit_heads")
        if drawn and model.run.settings.get("start"):
            return "seeds are not exchangeable: each draws other heads for one start, which one seed may have had"
    return None


def _without_images(found: RunNumbers, setting: str, variant: str) -> str | None:
    rows = pd.concat([select_measure(found.numbers, setting, measure) for measure in (DENSE, CLASSES)])
    rows = rows[rows["variant"].isin([STANDARD, variant])]
    if len(found.drawn) and pd.MultiIndex.from_frame(rows[list(DRAWN)]).isin(found.drawn.index).all():
        return None
    return "there are no scores per test image, so that the interval could not cover other images"
