"""F3 to F6, which need models trained standard and specialized: differences over seeds, and the verdicts on them.

F3. Specializing the norms, LayerScale and early QKV projections improves dense prediction, with classification kept.
F4. It costs about 8 % more parameters and no FLOPs.
F5. The norms bring most of it; QKV helps in the first third of the blocks; MLP and attention's output do not help.
F6. It holds for other sizes and objectives.

Of arXiv 2602.08626. Everything here is computed from tables of numbers: no model, no image. The unit is the trained
model, never the image: a model's interval over test images says nothing about another seed. A standard and a
specialized model of one seed share weights at the start, the order of images and every draw, so differences are taken
seed by seed; what only one of them has is left out and said. Fewer than ``MIN_SEEDS`` pairs give no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tokenlens.analysis.findings import Finding, Verdict
from tokenlens.statistics.seed_effects import MIN_SEEDS, Effect, effect_of, seeds_needed
from tokenlens.verification.numbers import (
    CELL,
    CLASSES,
    DENSE,
    LOSS,
    PAPER,
    STANDARD,
    TWIN,
    cells_of,
    effects,
    interval_text,
    listed,
    points,
    score_effect,
    seeds_text,
    signed,
    variants_of,
)

COSTS = ("model", "preset", "parameters", "added_parameters", "flops", "added_flops")

CLAIM = 2.0
"""Points of mIoU: the smallest gain that the paper claims."""

MARGIN = CLAIM / 2
"""A gain whose whole interval is below this is not the paper's."""

LOST = 1.0
"""Points of accuracy that may be lost where classification counts as kept."""

PARAMETERS, PARAMETERS_WITHIN = 8.0, 0.5
"""F4: per cent more parameters in ViT-B/16, and how far from it."""

LITTLE = 0.1
"""F4: per cent; the norms' share of the parameters, and the change of the FLOPs, are below."""

TITLES = {
    "F3": "Specialization improves dense prediction and keeps classification",
    "F4": "It costs few parameters and no FLOPs",
    "F5": "The norms bring most of the gain, QKV helps early, MLP and output projection do not",
    "F6": "It holds for other sizes and objectives",
}

_MEANS = (
    "The number of a model is its mean IoU averaged over the resolutions that were asked for; differences are "
    "taken seed by seed, their 95 % interval is Student's t over seeds"
)
RULES = {
    "F3": (
        f"{_MEANS}. Supported: that interval lies above 0 and is not wholly below {MARGIN:g} point, and that of the "
        f"difference of accuracy (of CLS where it was probed) does not reach below −{LOST:g} point. Not supported: "
        f"the interval lies wholly below {MARGIN:g} point, which is half of the smallest gain of {CLAIM:g} that the "
        f"paper claims, or that of the accuracy wholly below −{LOST:g}. Inconclusive otherwise, and with fewer than "
        f"{MIN_SEEDS} seeds. Two standard models in place of the pair come out supported in at most 2.5 % of cases. "
        "The smallest detectable effect is the true gain at which 80 % of experiments of so many seeds, with the "
        "spread that was seen, have their interval above 0 (noncentral t). Losses of training are reported and do "
        "not decide."
    ),
    "F4": (
        "Counted on the architecture, nothing is trained. Supported: the paper's specialization of ViT-B/16 adds "
        f"{PARAMETERS:g} ± {PARAMETERS_WITHIN:g} % parameters, its norms alone less than {LITTLE:g} %, and neither "
        f"changes the FLOPs by more than {LITTLE:g} %. Not supported: otherwise."
    ),
    "F5": (
        f"{_MEANS}; p-values of every variant against standard and against paper are corrected for each other (q, "
        "Benjamini and Hochberg). Asked only where paper gains against standard (q < 0.05). Five claims: norms "
        "alone gain more than half of what paper gains; paper gains against norms alone; QKV in all blocks instead "
        "of the first third, MLP and attention's output projection gain nothing. The first is a contrast of its own "
        "and stands with its plain p in place of q. A gain holds with q < 0.05 and a "
        "difference above 0, and is refuted by an interval below 0. No gain holds with an interval below "
        f"{MARGIN:g} point, and is refuted by a gain with q < 0.05 that is not. Supported: all claims hold; not "
        "supported: one is refuted; else inconclusive."
    ),
    "F6": (
        "F3 in each setting (objective, model, size). Supported: in at least two settings, and in all of them; "
        "that each must hold makes a correction for their number superfluous. Not supported: F3 is not supported "
        "in some setting with intervals of 1 − 0.05 / number of settings. Else inconclusive."
    ),
}

CLAIMS = (
    ("norms alone gain more than half of what paper gains", ("norms",), "gain"),
    ("paper gains against norms alone", ("paper", "norms"), "gain"),
    ("QKV in all blocks gains nothing against the first third", ("qkv_all", "paper"), "no gain"),
    ("MLP alone gains nothing", ("mlp", "standard"), "no gain"),
    ("the output projection alone gains nothing", ("proj", "standard"), "no gain"),
)
"""F5: what is said, of which variant against which other, and whether it is a gain. Without another one it is against
the mean of standard and paper."""


def judge_pairs(numbers: pd.DataFrame, costs: pd.DataFrame | None = None) -> list[Finding]:
    """F3 to F6 on a table of numbers with the columns of ``NUMBERS``.

    F3 comes once for each setting, with a control where there are twins, F5 for each setting with ablations.

    Args:
        numbers: of trained models.
        costs: with the columns of ``COSTS``; F4 is left out without.
    """
    settings = list(dict.fromkeys(numbers["setting"]))
    found = [third(numbers, setting) for setting in settings]
    found += [third(numbers, setting, TWIN) for setting in settings if TWIN in variants_of(numbers, setting)]
    if costs is not None:
        found.append(fourth(costs))
    ablated = [setting for setting in settings if variants_of(numbers, setting) - {STANDARD, PAPER, TWIN}]
    found += [fifth(numbers, setting) for setting in ablated or settings[:1]]
    return [*found, sixth(numbers)]


# -- F3


def third(numbers: pd.DataFrame, setting: str, variant: str = PAPER) -> Finding:
    """F3 in one setting: a variant against the standard models.

    Args:
        numbers: of trained models.
        setting: one of those in ``numbers``.
        variant: another than paper, e.g. ``"twin"`` for a control.
    """
    dense = score_effect(numbers, setting, variant, STANDARD, DENSE)
    kept = score_effect(numbers, setting, variant, STANDARD, CLASSES)
    verdict = third_verdict(dense, kept)
    title = TITLES["F3"] if variant != TWIN else "Control: two standard models of different seeds"
    n = cells_of(numbers, setting, DENSE)["n"]
    return Finding(
        "F3",
        title,
        verdict,
        _third_sentence(numbers, setting, variant, dense, kept, verdict),
        int(n.max()) if len(n) else 0,
        _known(dense.difference),
        _bounds(dense),
        RULES["F3"],
        subject=f"{variant} against {STANDARD}",
        scale=setting,
        seeds=dense.seeds,
        detectable=_known(dense.detectable),
    )


def third_verdict(dense: Effect, kept: Effect) -> Verdict:
    """The rule of F3; see ``RULES``.

    Args:
        dense: difference of mean IoU in points.
        kept: of the accuracy.
    """
    if not dense.enough:
        return "inconclusive"
    if dense.high < MARGIN or (kept.enough and kept.high < -LOST):
        return "not supported"
    return "supported" if dense.low > 0 and kept.enough and kept.low >= -LOST else "inconclusive"


def _third_sentence(
    numbers: pd.DataFrame, setting: str, variant: str, dense: Effect, kept: Effect, verdict: Verdict
) -> str:
    if not dense.seeds:
        return f"There is no pair of a {STANDARD} and a {variant} model with mean IoU to judge."
    sizes = sorted({int(size) for size in cells_of(numbers, setting, DENSE)["resolution"]})
    over = f", mean over {listed([f'{size}' for size in sizes])} px" if len(sizes) > 1 else f" at {sizes[0]} px"
    parts = [f"Mean IoU{over}: {points(dense.difference)} points ({interval_text(dense)}; {seeds_text(dense)})."]
    if len(sizes) > 1:
        single = [f"{points(_at(numbers, setting, variant, size).difference)} at {size} px" for size in sizes]
        parts.append(f"{listed(single)}.")
    if kept.seeds:
        lost = kept.high < -LOST
        how = "lost" if kept.enough and lost else "kept" if kept.enough and kept.low >= -LOST else "open whether kept"
        parts.append(f"Accuracy: {points(kept.difference)} points ({interval_text(kept)}): {how}.")
    else:
        parts.append("No accuracy was measured, so that nothing says whether classification is kept.")
    loss = score_effect(numbers, setting, variant, STANDARD, LOSS)
    if loss.seeds:
        lower = sum(value < 0 for value in loss.each.values())
        count = f"; lower in {lower} of {len(loss.each)} seeds" if loss.each else ""
        parts.append(f"Loss at the end of training: {signed(loss.difference, 4)} ({interval_text(loss, 4)}{count}).")
    if not dense.enough:
        parts.append(f"A verdict needs {MIN_SEEDS} seeds.")
    if verdict == "not supported" and dense.low > 0:
        parts.append(f"There is a gain, and it is smaller than {MARGIN:g} point.")
    if not math.isnan(dense.detectable):
        parts.append(_power(dense))
    return " ".join(parts)


def _at(numbers: pd.DataFrame, setting: str, variant: str, size: int) -> Effect:
    rows = numbers[(numbers["measure"] != DENSE) | (numbers["resolution"] == size)]
    return score_effect(rows, setting, variant, STANDARD, DENSE)


def _power(effect: Effect) -> str:
    smallest = f"{effect.detectable:.1f}".replace("-", "−")
    text = f"{effect.seeds} seeds with this spread show a gain of {smallest} points or more with 80 % power"
    if effect.detectable <= CLAIM:
        return f"{text}; the paper claims {CLAIM:g}."
    needed = seeds_needed(effect.sd, CLAIM) if effect.paired else None
    more = f", for which {needed} seeds would be needed" if needed else ""
    return f"{text}; the paper claims {CLAIM:g}{more}."


# -- F4


def fourth(costs: pd.DataFrame) -> Finding:
    """F4 on what specializations of ViT-B/16 cost.

    Args:
        costs: with the columns of ``COSTS``; a row each for ``paper`` and ``norms`` of one model.
    """
    rows = costs.set_index("preset")
    share = {
        name: 100 * rows.loc[name, f"added_{what}"] / rows.loc[name, what]
        for name, what in ((PAPER, "parameters"), ("norms", "parameters"))
    }
    flops = {name: float(100 * rows.loc[name, "added_flops"] / rows.loc[name, "flops"]) for name in (PAPER, "norms")}
    holds = (
        abs(share[PAPER] - PARAMETERS) <= PARAMETERS_WITHIN
        and share["norms"] < LITTLE
        and max(map(abs, flops.values())) <= LITTLE
    )
    added, of = (rows.loc[PAPER, name] / 1e6 for name in ("added_parameters", "parameters"))
    sentence = (
        f"The paper's specialization adds {added:.2f} M parameters to {of:.1f} M ({share[PAPER]:.2f} %), norms "
        f"alone {share['norms']:.3f} %; FLOPs change by {signed(flops[PAPER], 3)} % (the prefix tokens' rows are "
        "computed with both sets)."
    )
    return Finding(
        "F4",
        TITLES["F4"],
        "supported" if holds else "not supported",
        sentence,
        0,
        float(share[PAPER]),
        None,
        RULES["F4"],
        subject=f"{PAPER} against {STANDARD}",
        scale=f"{rows.loc[PAPER, 'model']}, architecture only",
    )


# -- F5


def fifth(numbers: pd.DataFrame, setting: str) -> Finding:
    """F5 in one setting: the ablations."""
    table = effects(numbers[numbers["setting"] == setting])
    whole = table[(table["measure"] == DENSE) & (table["cell"] == "mean")].set_index(["variant", "against"])
    gain = score_effect(numbers, setting, PAPER, STANDARD, DENSE)
    there = variants_of(numbers, setting)
    missing = sorted({name for _, pair, _ in CLAIMS for name in pair} - there)
    verdict: Verdict = "inconclusive"
    told = []
    outcomes = []
    for claim, pair, wanted in CLAIMS:
        if not {STANDARD, PAPER, *pair} <= there:
            continue
        effect, q = _claimed(numbers, setting, pair, whole)
        outcome = _holds(effect, q, wanted)
        outcomes.append(outcome)
        how = {1: "holds", 0: "refuted", None: "open"}[outcome]
        tested = "p" if len(pair) == 1 else "q"
        told.append(f"{claim}: {points(effect.difference)} points ({interval_text(effect)}, {tested} = {q:.2g}): {how}")
    gains = (
        gain.enough
        and gain.difference > 0
        and (PAPER, STANDARD) in whole.index
        and (float(whole.loc[(PAPER, STANDARD), "q"]) < 0.05)
    )
    if missing:
        told.append(f"not trained: {', '.join(missing)}")
    if not gain.enough:
        told.insert(0, f"{seeds_text(gain)} of {PAPER} against {STANDARD}; a verdict needs {MIN_SEEDS}")
    elif not gains:
        told.insert(0, f"there is no gain here to take apart ({points(gain.difference)} points, {interval_text(gain)})")
    elif 0 in outcomes:
        verdict = "not supported"
    elif not missing and all(outcome == 1 for outcome in outcomes):
        verdict = "supported"
    sentence = "; ".join(told)
    n = cells_of(numbers, setting, DENSE)["n"]
    alone = score_effect(numbers, setting, "norms", STANDARD, DENSE)
    return Finding(
        "F5",
        TITLES["F5"],
        verdict,
        f"{sentence[:1].upper()}{sentence[1:]}.",
        int(n.max()) if len(n) else 0,
        _known(alone.difference),
        _bounds(alone),
        RULES["F5"],
        subject=f"norms against {STANDARD}",
        scale=setting,
        seeds=alone.seeds,
        detectable=_known(alone.detectable),
    )


def _claimed(numbers: pd.DataFrame, setting: str, pair: Sequence[str], whole: pd.DataFrame) -> tuple[Effect, float]:
    if len(pair) == 2:
        effect = score_effect(numbers, setting, pair[0], pair[1], DENSE)
        q = whole["q"]  # two-sided, so the same for a pair and for its reverse
        return effect, float(q.get((pair[0], pair[1]), q.get((pair[1], pair[0]), math.nan)))
    half = numbers[numbers["variant"].isin([STANDARD, PAPER])].copy()
    counts = half.groupby(["setting", "seed", *CELL])["variant"].transform("nunique")
    half = half[counts == 2].groupby(["setting", "seed", *CELL], as_index=False)["value"].mean()
    both = pd.concat([numbers[numbers["variant"] == pair[0]], half.assign(variant="half")])
    effect = score_effect(both, setting, pair[0], "half", DENSE)
    return effect, effect.p


def _holds(effect: Effect, q: float, wanted: str) -> int | None:
    """1 where a claim of F5 holds, 0 where it is refuted, None where it is open."""
    if not effect.enough:
        return None
    gains = q < 0.05 and effect.difference > 0
    if wanted == "gain":
        return 1 if gains else 0 if effect.high < 0 else None
    return 1 if effect.high < MARGIN else 0 if gains else None


# -- F6


def sixth(numbers: pd.DataFrame) -> Finding:
    """F6: F3 in every setting."""
    settings = list(dict.fromkeys(numbers["setting"]))
    level = 0.05 / max(len(settings), 1)
    verdicts, refuted, told = [], 0, []
    effects_of = []
    for setting in settings:
        dense, kept = (score_effect(numbers, setting, PAPER, STANDARD, what) for what in (DENSE, CLASSES))
        strict = [score_effect(numbers, setting, PAPER, STANDARD, what, 1 - level) for what in (DENSE, CLASSES)]
        verdicts.append(third_verdict(dense, kept))
        refuted += third_verdict(*strict) == "not supported"
        effects_of.append(dense)
        told.append(f"{setting}: {points(dense.difference)} points ({interval_text(dense)}), F3 {verdicts[-1]}")
    verdict: Verdict = "inconclusive"
    if len(settings) > 1 and all(one == "supported" for one in verdicts):
        verdict = "supported"
    elif len(settings) > 1 and refuted:
        verdict = "not supported"
    if len(settings) < 2:
        told.append("one setting only; another size or objective is needed")
    known = [effect.difference for effect in effects_of if effect.seeds]
    return Finding(
        "F6",
        TITLES["F6"],
        verdict,
        f"{'; '.join(told)}.",
        0,
        float(np.mean(known)) if known else None,
        None,
        RULES["F6"],
        subject=f"{PAPER} against {STANDARD}",
        scale=f"{len(settings)} setting{'s' if len(settings) != 1 else ''}",
        seeds=min((effect.seeds for effect in effects_of), default=0),
    )


# -- F1 and F2 on several models


def over_seeds(name: str, judged: Mapping[int, Finding], variant: str, setting: str) -> Finding:
    """F1 or F2 of one variant over its trained models.

    Args:
        name: ``"F1"`` or ``"F2"``.
        judged: the finding of each model's analysis, by seed; at least one.
    """
    first = next(iter(judged.values()))
    verdicts = [finding.verdict for finding in judged.values()]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    seeds = f"{len(judged)} seed{'s' if len(judged) != 1 else ''}"
    same = len(counts) == 1 and (len(judged) >= MIN_SEEDS or first.verdict == "not applicable")
    known = {seed: finding.effect for seed, finding in judged.items() if finding.effect is not None}
    effect = effect_of(known, dict.fromkeys(known, 0.0))
    told = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
    few = "" if len(judged) >= MIN_SEEDS else f"; a verdict needs {MIN_SEEDS} seeds"
    seed = min(judged)
    return Finding(
        name,
        first.title,
        first.verdict if same else "inconclusive",
        f"{seeds}: {told}{few}. Seed {seed}: {judged[seed].sentence}",
        max(f.n for f in judged.values()),
        _known(effect.difference),
        _bounds(effect),
        f"{first.rule} Over trained models: their common verdict, from {MIN_SEEDS} seeds on; inconclusive where they "
        "disagree. The effect's interval is Student's t over seeds.",
        subject=variant,
        scale=setting,
        seeds=len(judged),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _bounds(effect: Effect) -> tuple[float, float] | None:
    return None if math.isnan(effect.low) else (effect.low, effect.high)
