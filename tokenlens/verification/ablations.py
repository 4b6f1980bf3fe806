"""Judge the finding F5 of the paper on trained models: which parts of a specialization matter."""

from __future__ import annotations

import math

import pandas as pd
from scipy import stats

from tokenlens.analysis.findings import Finding, Verdict
from tokenlens.statistics.seed_effects import MIN_SEEDS, Effect
from tokenlens.verification.numbers import DENSE, compare_scores, contrast_scores, count_test_images, variants_of
from tokenlens.verification.rules import CLAIMS, LEVEL, RULES, TITLES, Claim
from tokenlens.verification.variants import PAPER, STANDARD
from tokenlens.verification.wording import Unmet, bounds_of, describe_interval, describe_seeds, format_points, known


def judge_f5(
    numbers: pd.DataFrame, setting: str, drawn: pd.DataFrame | None = None, unmet: Unmet | None = None
) -> Finding:
    """Judge F5 in one setting: the five claims of ``CLAIMS``.

    Args:
        numbers, drawn, unmet: see ``tokenlens.verification.findings.judge_trained_models``.
        setting: the setting.
    """
    unmet = unmet or {}
    gain = compare_scores(numbers, setting, PAPER, STANDARD, DENSE, drawn=drawn)
    norms = compare_scores(numbers, setting, "norms", STANDARD, DENSE, drawn=drawn)
    present = variants_of(numbers, setting)
    missing = sorted({name for claim in CLAIMS for name in claim.weights} - present)
    trained = [claim for claim in CLAIMS if set(claim.weights) <= present]
    effects = [contrast_scores(numbers, setting, claim.weights, DENSE, drawn) for claim in trained]
    outcomes, parts = [], []
    for claim, effect, q in zip(trained, effects, correct_claims(effects), strict=True):
        of_paper = unmet.get((setting, PAPER), ())
        reasons = [reason for reason in unmet.get((setting, claim.variant), ()) if reason not in of_paper]
        outcome = None if reasons else claim_outcome(effect, q)
        outcomes.append(outcome)
        parts.append(_describe(claim, effect, q, outcome, reasons))
    if missing:
        parts.append(f"not trained: {', '.join(missing)}")
    verdict: Verdict = "inconclusive"
    if not gain.enough:
        parts.insert(0, f"{PAPER} against {STANDARD}: {describe_seeds(gain)}; a verdict needs {MIN_SEEDS}")
    elif unmet.get((setting, PAPER)):
        verdict = "not applicable"
        parts.insert(0, "F5 does not apply, as F3 does not")
    elif not gain.low > 0:
        change = f"{format_points(gain.difference)} points, {describe_interval(gain)}"
        parts.insert(0, f"there is no gain to attribute ({change})")
    elif False in outcomes:
        verdict = "not supported"
    elif not missing and all(outcomes):
        verdict = "supported"
    sentence = "; ".join(parts)
    return Finding(
        "F5",
        TITLES["F5"],
        verdict,
        f"{sentence[:1].upper()}{sentence[1:]}.",
        count_test_images(numbers, setting),
        known(norms.difference),
        bounds_of(norms),
        RULES["F5"],
        subject=f"norms against {STANDARD}",
        scale=setting,
        seeds=norms.seeds,
        detectable=known(norms.detectable),
    )


def correct_claims(effects: list[Effect]) -> list[float]:
    """Return q of each contrast: Benjamini and Hochberg over those that have enough seeds; NaN for the others."""
    tested = [number for number, effect in enumerate(effects) if effect.enough]
    corrected = [math.nan] * len(effects)
    if tested:
        for number, q in zip(tested, stats.false_discovery_control([effects[i].p for i in tested]), strict=True):
            corrected[number] = float(q)
    return corrected


def claim_outcome(effect: Effect, q: float) -> bool | None:
    """Return True if a claim holds, False if it is refuted, None if it is open."""
    return effect.difference > 0 if q < LEVEL else None


def _describe(claim: Claim, effect: Effect, q: float, outcome: bool | None, reasons: list[str]) -> str:
    state = {True: "holds", False: "refuted", None: "open"}[outcome]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    if math.isnan(q):
        return f"{claim.text}: {state}{why or f' ({effect.seeds} seeds)'}"
    evidence = f"{describe_interval(effect)}, q = {q:.2g}"
    return f"{claim.text}: by {format_points(effect.difference)} points ({evidence}): {state}{why}"
