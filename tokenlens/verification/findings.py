"""Judge the findings F3 to F6 of the paper on trained models, over seeds.

F3. Specializing the norms, LayerScale and early QKV projections improves dense prediction and keeps classification.
F4. It costs about 8 % more parameters and no FLOPs.
F5. The norms bring most of the gain; QKV helps in the first third of the blocks; MLP and attention's output do not.
F6. It holds for other sizes and objectives.

From arXiv 2602.08626. Everything here is computed from tables of numbers. The unit is the trained model: the interval
of one model over test images says nothing about another seed. A standard and a specialized model of one seed share
initial weights, the order of images and every random draw, so differences are taken seed by seed, and seeds that only
one variant has are left out and named. Fewer than ``MIN_SEEDS`` seeds give no verdict. F3, F5 and F6 have premises
(``tokenlens.verification.premises``); F5 is judged in ``tokenlens.verification.ablations``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from tokenlens.analysis.findings import Finding, Verdict
from tokenlens.statistics.seed_effects import MIN_SEEDS, Effect, estimate_effect
from tokenlens.verification.ablations import judge_f5
from tokenlens.verification.numbers import (
    CLASSES,
    DENSE,
    LOSS,
    compare_scores,
    count_test_images,
    select_measure,
    variants_of,
)
from tokenlens.verification.power import Spread, detectable_gain, detectable_range, seeds_for, spread_of
from tokenlens.verification.rules import (
    CLAIMED_GAIN,
    MAX_LOSS,
    MIN_GAIN,
    NEGLIGIBLE,
    PARAMETERS,
    PARAMETERS_TOLERANCE,
    RULES,
    TITLES,
)
from tokenlens.verification.variants import PAPER, STANDARD, TWIN
from tokenlens.verification.wording import (
    Unmet,
    bounds_of,
    describe_interval,
    describe_seeds,
    format_points,
    format_signed,
    join_words,
    known,
)


def judge_trained_models(
    numbers: pd.DataFrame,
    costs: pd.DataFrame | None = None,
    drawn: pd.DataFrame | None = None,
    unmet: Unmet | None = None,
) -> list[Finding]:
    """Judge F3 to F6 on a table of numbers.

    F3 is judged in each setting, and once more as a control where there are twins; F5 in each setting with ablations.

    Args:
        numbers: a table with the columns of ``tokenlens.verification.numbers.NUMBERS``.
        costs: a table with the columns of ``tokenlens.verification.rules.COSTS``; None to leave out F4.
        drawn: bootstrap draws of the scores, see ``tokenlens.verification.image_draws``; None for intervals over seeds.
        unmet: premises that fail, see ``tokenlens.verification.premises``; None if all are met.
    """
    unmet = unmet or {}
    settings = list(dict.fromkeys(numbers["setting"]))
    with_twins = [setting for setting in settings if TWIN in variants_of(numbers, setting)]
    findings = [judge_f3(numbers, setting, PAPER, drawn, unmet) for setting in settings]
    findings += [judge_f3(numbers, setting, TWIN, drawn, unmet) for setting in with_twins]
    if costs is not None:
        findings.append(judge_f4(costs))
    ablated = [setting for setting in settings if variants_of(numbers, setting) - {STANDARD, PAPER, TWIN}]
    findings += [judge_f5(numbers, setting, drawn, unmet) for setting in ablated or settings[:1]]
    return [*findings, judge_f6(numbers, drawn, unmet)]


def judge_f3(
    numbers: pd.DataFrame,
    setting: str,
    variant: str = PAPER,
    drawn: pd.DataFrame | None = None,
    unmet: Unmet | None = None,
) -> Finding:
    """Judge F3 in one setting: a variant against the standard models; ``"twin"`` gives the control."""
    dense = compare_scores(numbers, setting, variant, STANDARD, DENSE, drawn=drawn)
    accuracy = compare_scores(numbers, setting, variant, STANDARD, CLASSES, drawn=drawn)
    reasons = (unmet or {}).get((setting, variant), []) if dense.seeds else []
    verdict: Verdict = "not applicable" if reasons else f3_verdict(dense, accuracy)
    sentence = _f3_sentence(numbers, setting, variant, dense, accuracy, verdict)
    if reasons:
        sentence = f"F3 does not apply: {'; '.join(reasons)}. The numbers all the same: {sentence}"
    spread = spread_of(dense, accuracy)
    detectable = detectable_gain(spread) if spread else math.nan
    return Finding(
        "F3",
        TITLES["F3"] if variant != TWIN else "Control: two standard models of different seeds",
        verdict,
        sentence,
        count_test_images(numbers, setting),
        known(dense.difference),
        bounds_of(dense),
        RULES["F3"],
        subject=f"{variant} against {STANDARD}",
        scale=setting,
        seeds=dense.seeds,
        detectable=known(detectable) if math.isfinite(detectable) else None,
    )


def f3_verdict(dense: Effect, accuracy: Effect) -> Verdict:
    """Apply the rule of F3 (see ``RULES``) to the differences of mean IoU and of accuracy, in points."""
    if not dense.enough:
        return "inconclusive"
    if dense.high < MIN_GAIN or (accuracy.enough and accuracy.high < -MAX_LOSS):
        return "not supported"
    return "supported" if dense.low > 0 and accuracy.enough and accuracy.low >= -MAX_LOSS else "inconclusive"


def _f3_sentence(
    numbers: pd.DataFrame, setting: str, variant: str, dense: Effect, accuracy: Effect, verdict: Verdict
) -> str:
    if not dense.seeds:
        return f"There are no {STANDARD} and {variant} models of the same seed whose mean IoU can be compared."
    rows = select_measure(numbers, setting, DENSE)
    sizes = sorted({int(size) for size in rows["resolution"]})
    at = f", mean over {join_words([f'{size}' for size in sizes])} px" if len(sizes) > 1 else f" at {sizes[0]} px"
    parts = [f"Mean IoU{at}: {format_points(dense.difference)} points ({_evidence(dense)})."]
    if len(sizes) > 1:
        single = [compare_scores(rows[rows["resolution"] == size], setting, variant, STANDARD, DENSE) for size in sizes]
        texts = [f"{format_points(one.difference)} at {size} px" for one, size in zip(single, sizes, strict=True)]
        parts.append(f"{join_words(texts)}.")
    if accuracy.seeds:
        state = "whether it is kept is open"
        if accuracy.enough and accuracy.high < -MAX_LOSS:
            state = "lost"
        elif accuracy.enough and accuracy.low >= -MAX_LOSS:
            state = "kept"
        change = f"{format_points(accuracy.difference)} points ({describe_interval(accuracy)})"
        parts.append(f"Accuracy: {change}: {state}.")
    else:
        parts.append("Accuracy was not measured, so whether classification is kept is unknown.")
    loss = compare_scores(numbers, setting, variant, STANDARD, LOSS)
    if loss.seeds:
        lower = sum(value < 0 for value in loss.each.values())
        count = f"; lower in {lower} of {len(loss.each)} seeds" if loss.each else ""
        change = f"{format_signed(loss.difference, 4)} ({describe_interval(loss, 4)}{count})"
        parts.append(f"Loss at the end of training: {change}.")
    if not dense.enough:
        parts.append(f"A verdict needs {MIN_SEEDS} seeds.")
    if verdict == "not supported" and dense.low > 0:
        parts.append(f"There is a gain, but it is smaller than {MIN_GAIN:g} point.")
    spread = spread_of(dense, accuracy)
    if spread is not None:
        parts.append(_power(spread))
    return " ".join(parts)


def _power(spread: Spread) -> str:
    """Say which gain this many seeds detect, with the uncertainty of a standard deviation from so few."""
    smallest, (low, high) = detectable_gain(spread), detectable_range(spread)
    needed = seeds_for(spread, CLAIMED_GAIN) if smallest > CLAIMED_GAIN else None
    would = f", which would need {needed} seeds" if needed else ""
    if not math.isfinite(smallest):
        return (
            f"With this spread of the accuracy, {spread.seeds} seeds call no gain supported with 80 % power; the paper "
            f"claims {CLAIMED_GAIN:g}{would}."
        )
    upper = f"{high:.1f}" if math.isfinite(high) else "no gain"
    return (
        f"With this spread, {spread.seeds} seeds detect a gain of {smallest:.1f} points or more with 80 % power, "
        f"accuracy included ({low:.1f} to {upper}, as the spread itself is known from {spread.seeds} seeds only); the "
        f"paper claims {CLAIMED_GAIN:g}{would}."
    )


def judge_f4(costs: pd.DataFrame) -> Finding:
    """Judge F4 on the costs of specializations of ViT-B/16.

    Args:
        costs: a table with the columns of ``COSTS``, with a row each for ``paper`` and ``norms`` of one model.
    """
    rows = costs.set_index("preset")
    parameters, flops = (
        {name: float(100 * rows.loc[name, f"added_{what}"] / rows.loc[name, what]) for name in (PAPER, "norms")}
        for what in ("parameters", "flops")
    )
    holds = (
        abs(parameters[PAPER] - PARAMETERS) <= PARAMETERS_TOLERANCE
        and parameters["norms"] < NEGLIGIBLE
        and max(map(abs, flops.values())) <= NEGLIGIBLE
    )
    added, standard = (rows.loc[PAPER, name] / 1e6 for name in ("added_parameters", "parameters"))
    return Finding(
        "F4",
        TITLES["F4"],
        "supported" if holds else "not supported",
        f"The paper's specialization adds {added:.2f} M parameters to {standard:.1f} M ({parameters[PAPER]:.2f} %), "
        f"norms alone {parameters['norms']:.3f} %; FLOPs change by {format_signed(flops[PAPER], 3)} % (the rows of the "
        "special tokens are computed with both sets of weights).",
        0,
        parameters[PAPER],
        None,
        RULES["F4"],
        subject=f"{PAPER} against {STANDARD}",
        scale=f"{rows.loc[PAPER, 'model']}, architecture only",
    )


def judge_f6(numbers: pd.DataFrame, drawn: pd.DataFrame | None = None, unmet: Unmet | None = None) -> Finding:
    """Judge F6: F3 in every setting."""
    settings = list(dict.fromkeys(numbers["setting"]))
    confidence = 1 - 0.05 / max(len(settings), 1)
    verdicts, strict_verdicts, gains, parts = [], [], [], []
    for setting in settings:
        dense, accuracy, *strict = (
            compare_scores(numbers, setting, PAPER, STANDARD, what, level, drawn)
            for level in (0.95, confidence)
            for what in (DENSE, CLASSES)
        )
        applies = not (unmet or {}).get((setting, PAPER))
        verdict: Verdict = f3_verdict(dense, accuracy) if applies else "not applicable"
        gains.append(dense)
        change = f"{format_points(dense.difference)} points ({describe_interval(dense)})"
        parts.append(f"{setting}: {change}, F3 {verdict}")
        if applies:
            verdicts.append(verdict)
            strict_verdicts.append(f3_verdict(*strict))
    verdict = "inconclusive"
    if not verdicts:
        verdict = "not applicable"
        parts.append("F3 applies to no setting")
    elif len(verdicts) < 2:
        parts.append("F3 applies to only one setting; another size or objective is needed")
    elif all(one == "supported" for one in verdicts):
        verdict = "supported"
    elif "not supported" in strict_verdicts:
        verdict = "not supported"
    changes = [effect.difference for effect in gains if effect.seeds]
    return Finding(
        "F6",
        TITLES["F6"],
        verdict,
        f"{'; '.join(parts)}.",
        0,
        float(np.mean(changes)) if changes else None,
        None,
        RULES["F6"],
        subject=f"{PAPER} against {STANDARD}",
        scale=f"{len(settings)} setting{'s' if len(settings) != 1 else ''}",
        seeds=min((effect.seeds for effect in gains), default=0),
    )


def judge_over_seeds(name: str, judged: Mapping[int, Finding], variant: str, setting: str) -> Finding:
    """Combine the verdicts on a claim of F1 or F2 of one variant's trained models.

    Args:
        name: ``"F1(a)"``, ….
        judged: the finding on each model's analysis, by seed; at least one.
        variant: the variant.
        setting: the setting.
    """
    seed = min(judged)
    first = next(iter(judged.values()))
    verdicts = [finding.verdict for finding in judged.values()]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    agree = len(counts) == 1 and (len(judged) >= MIN_SEEDS or first.verdict == "not applicable")
    effects = {seed: finding.effect for seed, finding in judged.items() if finding.effect is not None}
    effect = estimate_effect(effects, dict.fromkeys(effects, 0.0))
    seeds = f"{len(judged)} {'seed' if len(judged) == 1 else 'seeds'}"
    summary = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
    few = "" if len(judged) >= MIN_SEEDS else f"; a verdict needs {MIN_SEEDS} seeds"
    return Finding(
        name,
        first.title,
        first.verdict if agree else "inconclusive",
        f"{seeds}: {summary}{few}. Seed {seed}: {judged[seed].sentence}",
        max(finding.n for finding in judged.values()),
        known(effect.difference),
        bounds_of(effect),
        f"{first.rule} Over trained models: their common verdict, with at least {MIN_SEEDS} seeds; inconclusive if "
        "they disagree. The interval of the effect is Student's t over seeds.",
        subject=variant,
        scale=setting,
        seeds=len(judged),
    )


def _evidence(effect: Effect) -> str:
    return f"{describe_interval(effect)}; {describe_seeds(effect)}"
