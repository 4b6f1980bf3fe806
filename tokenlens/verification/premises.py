"""Premises of F3 and F5: what must be true of trained models before a difference between them says anything.

docs/decisions/0016-verdicts-that-can-be-trusted.md gives the reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.findings import Verdict, judge
from tokenlens.verification.numbers import CLASSES, DENSE, compare_to_start, select_measure, variants_of
from tokenlens.verification.rules import MIN_DISTANCE
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
    """Return the verdict of F1(a) on one model; "not applicable" for an untrained one."""
    if analysis.untrained:
        return "not applicable"
    return next(finding.verdict for finding in judge(analysis) if finding.name == "F1(a)")


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
