"""Judge the findings F3 to F6 of the paper on trained models, over seeds.

F3. Specializing the norms, LayerScale and early QKV projections improves dense prediction and keeps classification.
F4. It costs about 8 % more parameters and no FLOPs.
F5. The norms bring most of the gain; QKV helps in the first third of the blocks; MLP and attention's output do not.
F6. It holds for other sizes and objectives.

From arXiv 2602.08626. Everything here is computed from tables of numbers. The unit is the trained model, not the image:
the interval of one model over test images says nothing about another seed. A standard and a specialized model of one
seed share initial weights, the order of images and every random draw, so differences are taken seed by seed, and seeds
that only one variant has are left out and named. Fewer than ``MIN_SEEDS`` seeds give no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from tokenlens.analysis.findings import Finding, Verdict
from tokenlens.statistics.seed_effects import MIN_SEEDS, Effect, estimate_effect, seeds_needed
from tokenlens.verification.numbers import (
    CLASSES,
    DENSE,
    LOSS,
    MEASUREMENT,
    compare_scores,
    select_measure,
    tabulate_effects,
    variants_of,
)
from tokenlens.verification.rules import (
    CLAIMED_GAIN,
    CLAIMS,
    MAX_LOSS,
    MIN_GAIN,
    NEGLIGIBLE,
    PARAMETERS,
    PARAMETERS_TOLERANCE,
    RULES,
    TITLES,
    Claim,
)
from tokenlens.verification.variants import PAPER, STANDARD, TWIN
from tokenlens.verification.wording import describe_interval, describe_seeds, format_points, format_signed, join_words


def judge_trained_models(numbers: pd.DataFrame, costs: pd.DataFrame | None = None) -> list[Finding]:
    """Judge F3 to F6 on a table of numbers.

    F3 is judged in each setting, and once more as a control where there are twins; F5 in each setting with ablations.

    Args:
        numbers: a table with the columns of ``tokenlens.verification.numbers.NUMBERS``.
        costs: a table with the columns of ``tokenlens.verification.rules.COSTS``; None to leave out F4.
    """
    settings = list(dict.fromkeys(numbers["setting"]))
    findings = [judge_f3(numbers, setting) for setting in settings]
    findings += [judge_f3(numbers, setting, TWIN) for setting in settings if TWIN in variants_of(numbers, setting)]
    if costs is not None:
        findings.append(judge_f4(costs))
    ablated = [setting for setting in settings if variants_of(numbers, setting) - {STANDARD, PAPER, TWIN}]
    findings += [judge_f5(numbers, setting) for setting in ablated or settings[:1]]
    return [*findings, judge_f6(numbers)]


def judge_f3(numbers: pd.DataFrame, setting: str, variant: str = PAPER) -> Finding:
    """Judge F3 in one setting: a variant against the standard models; ``"twin"`` gives the control."""
    dense = compare_scores(numbers, setting, variant, STANDARD, DENSE)
    accuracy = compare_scores(numbers, setting, variant, STANDARD, CLASSES)
    verdict = f3_verdict(dense, accuracy)
    return Finding(
        "F3",
        TITLES["F3"] if variant != TWIN else "Control: two standard models of different seeds",
        verdict,
        _f3_sentence(numbers, setting, variant, dense, accuracy, verdict),
        _test_images(numbers, setting),
        _known(dense.difference),
        _bounds(dense),
        RULES["F3"],
        subject=f"{variant} against {STANDARD}",
        scale=setting,
        seeds=dense.seeds,
        detectable=_known(dense.detectable),
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
    if not math.isnan(dense.detectable):
        parts.append(_power(dense))
    return " ".join(parts)


def _power(effect: Effect) -> str:
    smallest = f"{effect.detectable:.1f}".replace("-", "−")
    text = (
        f"With this spread, {effect.seeds} seeds detect a gain of {smallest} points or more with 80 % power; the paper "
        f"claims {CLAIMED_GAIN:g}"
    )
    needed = seeds_needed(effect.sd, CLAIMED_GAIN) if effect.paired and effect.detectable > CLAIMED_GAIN else None
    return f"{text}, which would need {needed} seeds." if needed else f"{text}."


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


def judge_f5(numbers: pd.DataFrame, setting: str) -> Finding:
    """Judge F5 in one setting: the ablations."""
    table = tabulate_effects(numbers[numbers["setting"] == setting])
    means = table[(table["measure"] == DENSE) & (table["cell"] == "mean")].set_index(["variant", "against"])
    gain = compare_scores(numbers, setting, PAPER, STANDARD, DENSE)
    present = variants_of(numbers, setting)
    needed = {name for claim in CLAIMS for name in (claim.variant, claim.baseline) if name}
    missing = sorted(needed - present)
    parts, outcomes = [], []
    for claim in CLAIMS:
        if not {STANDARD, PAPER, claim.variant, claim.baseline or PAPER} <= present:
            continue
        effect, p = _test_claim(numbers, setting, claim, means)
        outcome = _claim_outcome(effect, p, claim)
        outcomes.append(outcome)
        state = {True: "holds", False: "refuted", None: "open"}[outcome]
        tested = "p" if claim.baseline is None else "q"
        evidence = f"{describe_interval(effect)}, {tested} = {p:.2g}"
        parts.append(f"{claim.text}: {format_points(effect.difference)} points ({evidence}): {state}")
    if missing:
        parts.append(f"not trained: {', '.join(missing)}")
    significant = (PAPER, STANDARD) in means.index and float(means.loc[(PAPER, STANDARD), "q"]) < 0.05
    verdict: Verdict = "inconclusive"
    if not gain.enough:
        parts.insert(0, f"{PAPER} against {STANDARD}: {describe_seeds(gain)}; a verdict needs {MIN_SEEDS}")
    elif gain.difference <= 0 or not significant:
        change = f"{format_points(gain.difference)} points, {describe_interval(gain)}"
        parts.insert(0, f"there is no gain to attribute ({change})")
    elif False in outcomes:
        verdict = "not supported"
    elif not missing and all(outcomes):
        verdict = "supported"
    sentence = "; ".join(parts)
    norms = compare_scores(numbers, setting, "norms", STANDARD, DENSE)
    return Finding(
        "F5",
        TITLES["F5"],
        verdict,
        f"{sentence[:1].upper()}{sentence[1:]}.",
        _test_images(numbers, setting),
        _known(norms.difference),
        _bounds(norms),
        RULES["F5"],
        subject=f"norms against {STANDARD}",
        scale=setting,
        seeds=norms.seeds,
        detectable=_known(norms.detectable),
    )


def _test_claim(numbers: pd.DataFrame, setting: str, claim: Claim, means: pd.DataFrame) -> tuple[Effect, float]:
    """Return the effect that a claim is about, with its q; p for a claim against the mean of standard and paper."""
    if claim.baseline is not None:
        effect = compare_scores(numbers, setting, claim.variant, claim.baseline, DENSE)
        q = means["q"]  # two-sided, so it is the same in both directions
        key = (claim.variant, claim.baseline)
        return effect, float(q.get(key, q.get(key[::-1], math.nan)))
    keys = ["setting", "seed", *MEASUREMENT]
    both = numbers[numbers["variant"].isin([STANDARD, PAPER])]
    both = both[both.groupby(keys)["variant"].transform("nunique") == 2]
    halfway = both.groupby(keys, as_index=False)["value"].mean().assign(variant="halfway")
    rows = pd.concat([numbers[numbers["variant"] == claim.variant], halfway])
    effect = compare_scores(rows, setting, claim.variant, "halfway", DENSE)
    return effect, effect.p


def _claim_outcome(effect: Effect, p: float, claim: Claim) -> bool | None:
    """Return True if a claim holds, False if it is refuted, None if it is open."""
    if not effect.enough:
        return None
    gains = p < 0.05 and effect.difference > 0
    if claim.expected == "gain":
        return True if gains else False if effect.high < 0 else None
    return True if effect.high < MIN_GAIN else False if gains else None


def judge_f6(numbers: pd.DataFrame) -> Finding:
    """Judge F6: F3 in every setting."""
    settings = list(dict.fromkeys(numbers["setting"]))
    confidence = 1 - 0.05 / max(len(settings), 1)
    verdicts, strict_verdicts, gains, parts = [], [], [], []
    for setting in settings:
        dense, accuracy = (compare_scores(numbers, setting, PAPER, STANDARD, what) for what in (DENSE, CLASSES))
        strict = [compare_scores(numbers, setting, PAPER, STANDARD, what, confidence) for what in (DENSE, CLASSES)]
        verdicts.append(f3_verdict(dense, accuracy))
        strict_verdicts.append(f3_verdict(*strict))
        gains.append(dense)
        change = f"{format_points(dense.difference)} points ({describe_interval(dense)})"
        parts.append(f"{setting}: {change}, F3 {verdicts[-1]}")
    verdict: Verdict = "inconclusive"
    if len(settings) < 2:
        parts.append("there is only one setting; another size or objective is needed")
    elif all(one == "supported" for one in verdicts):
        verdict = "supported"
    elif "not supported" in strict_verdicts:
        verdict = "not supported"
    known = [effect.difference for effect in gains if effect.seeds]
    return Finding(
        "F6",
        TITLES["F6"],
        verdict,
        f"{'; '.join(parts)}.",
        0,
        float(np.mean(known)) if known else None,
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
    known = {seed: finding.effect for seed, finding in judged.items() if finding.effect is not None}
    effect = estimate_effect(known, dict.fromkeys(known, 0.0))
    seeds = f"{len(judged)} {'seed' if len(judged) == 1 else 'seeds'}"
    summary = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
    few = "" if len(judged) >= MIN_SEEDS else f"; a verdict needs {MIN_SEEDS} seeds"
    return Finding(
        name,
        first.title,
        first.verdict if agree else "inconclusive",
        f"{seeds}: {summary}{few}. Seed {seed}: {judged[seed].sentence}",
        max(finding.n for finding in judged.values()),
        _known(effect.difference),
        _bounds(effect),
        f"{first.rule} Over trained models: their common verdict, with at least {MIN_SEEDS} seeds; inconclusive if "
        "they disagree. The interval of the effect is Student's t over seeds.",
        subject=variant,
        scale=setting,
        seeds=len(judged),
    )


def _test_images(numbers: pd.DataFrame, setting: str) -> int:
    n = select_measure(numbers, setting, DENSE)["n"]
    return int(n.max()) if len(n) else 0


def _evidence(effect: Effect) -> str:
    return f"{describe_interval(effect)}; {describe_seeds(effect)}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _bounds(effect: Effect) -> tuple[float, float] | None:
    return None if math.isnan(effect.low) else (effect.low, effect.high)
