"""Judge the findings F1 and F2 of the paper on one analyzed model, claim by claim.

Revisiting [CLS] and Patch Token Interaction in Vision Transformers (arXiv 2602.08626):

F1. The norm before attention differentiates: CLS–patch cosine falls to about 0 across it, patch–patch cosine stays.
F2. It does so through channels: some are large in CLS only or in patches only, which the norm's weights exploit.

F3 to F6 need trained models: ``tokenlens.verification.findings``. The rules are in ``tokenlens.analysis.rules``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from tokenlens.analysis.block_numbers import (
    Array,
    NumbersMissing,
    above,
    count_images,
    describe_trend,
    format_interval,
    format_number,
    ratio,
    read_blocks,
)
from tokenlens.analysis.rules import (
    ABOUT_ZERO,
    ABOVE_ROTATIONS,
    KEPT,
    MIN_FALL,
    MIN_IMAGES,
    MIN_SHARE_OF_BLOCKS,
    RULES,
    SITS_IN,
    TITLES,
)

if TYPE_CHECKING:
    from tokenlens.analysis.analysis import Analysis

Verdict = Literal["supported", "not supported", "inconclusive", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """A claim judged on one analysis, or on trained models over seeds.

    Attributes:
        name: F1(a), F1(b), F1(c), F2(a), F2(b), or F3 to F6.
        title: the claim in a few words.
        verdict: supported, not supported, inconclusive or not applicable.
        sentence: the observation, with numbers.
        n: number of distinct images.
        effect: size of the effect, None if there is none. F1(a): fall of the CLS–patch cosine; F1(b): patch–patch
            cosine after the norm; F1(c): what is left of it, as a ratio; F2(a): distance of the energy profiles above
            that of random rotations; F2(b): share of the fall. For F3, F5 and F6 percentage points of mean IoU, for F4
            per cent of the parameters.
        interval: its 95 % interval: for one analysis the mean of the intervals of the applicable blocks, which is
            conservative; for several models over seeds.
        rule: how this was judged.
        subject: the models, if there are several: ``"paper against standard"``.
        scale: objective, model, image size, data and steps of the trainings.
        seeds: number of trained models, or matched pairs of them; None for a single analysis.
        detectable: the smallest effect that this many seeds show with 80 % power, in the unit of ``effect``.
    """

    name: str
    title: str
    verdict: Verdict
    sentence: str
    n: int
    effect: float | None
    interval: tuple[float, float] | None
    rule: str
    subject: str = ""
    scale: str = ""
    seeds: int | None = None
    detectable: float | None = None


def judge(analysis: Analysis) -> list[Finding]:
    """Judge the claims of F1 and F2 on one model, by the rules in ``tokenlens.analysis.rules``."""
    return [_judge(analysis, name, check) for name, check in _CHECKS.items()]


def norms_come_first(analysis: Analysis) -> bool:
    """Return whether norm1 comes before attention.

    In a post-norm block the output of norm1 is what attention adds to the residual, so that the numbers at ``norm1``
    and ``attn_out`` are the same.
    """
    rows = analysis.table[analysis.table["metric"].isin(["patch_patch_cosine", "cls_patch_cosine"])]
    keys = ["metric", "block"]
    first, added = (rows[rows["site"] == site].set_index(keys)["value"].sort_index() for site in ("norm1", "attn_out"))
    return first.empty or len(first) != len(added) or not np.allclose(first, added, rtol=0, atol=1e-7, equal_nan=True)


@dataclass(frozen=True)
class _Evidence:
    """The outcome of one check.

    Attributes:
        applicable: whether it applies in each block.
        conditions: 1 where a condition holds, 0 where it fails, 0.5 where it is open, (conditions, blocks).
        effect: value, low and high end of the interval in each block, (3, blocks).
        observed: the observation in words; gets the applicable blocks.
        otherwise: why the check does not apply in the other blocks.
        n: number of images.
    """

    applicable: NDArray[np.bool_]
    conditions: list[Array]
    effect: Array
    observed: Callable[[NDArray[np.bool_]], str]
    otherwise: str
    n: int


def _judge(analysis: Analysis, name: str, check: Callable[[Analysis], _Evidence]) -> Finding:
    def finding(
        verdict: Verdict,
        sentence: str,
        n: int,
        effect: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> Finding:
        return Finding(name, TITLES[name], verdict, sentence, n, effect, interval, RULES[name])

    try:
        if "cls" not in analysis.layout.prefix:
            raise NumbersMissing(name, "the model has no [CLS] token")
        if not norms_come_first(analysis):
            raise NumbersMissing(name, "in this post-norm model norm1 comes after attention")
        evidence = check(analysis)
    except NumbersMissing as missing:
        metric = missing.args[0]
        reason = missing.args[1] if len(missing.args) > 1 else analysis.not_applicable.get(metric)
        if reason:
            return finding("not applicable", f"{metric} does not apply: {reason}.", 0)
        return finding("inconclusive", f"{metric} was not computed in this analysis.", 0)
    applicable, n = evidence.applicable, evidence.n
    blocks, judged = len(applicable), int(applicable.sum())
    few = f"{_plural(n, 'distinct image')} only; a verdict needs {MIN_IMAGES}."
    untrained = "Untrained model (random weights), a control. " if analysis.untrained else ""
    if judged < MIN_SHARE_OF_BLOCKS * blocks or not judged:
        sentence = f"{evidence.otherwise} in {blocks - judged} of {_plural(blocks, 'block')}."
        if n < MIN_IMAGES and not untrained:
            return finding("inconclusive", f"{few} {sentence}", n)
        return finding("not applicable", untrained + sentence, n)
    outcomes = np.min(evidence.conditions, axis=0)[applicable]
    holds, fails = int((outcomes == 1).sum()), int((outcomes == 0).sum())
    where = f"{_plural(judged, 'block')}" if judged == blocks else f"the {judged} applicable blocks (of {blocks})"
    sentence = f"{evidence.observed(applicable)} All conditions hold in {holds} of {where}."
    verdict: Verdict
    if analysis.untrained:
        verdict = "not applicable"
        sentence = untrained + sentence
    elif n < MIN_IMAGES:
        verdict = "inconclusive"
        sentence = f"{few} {sentence}"
    elif 2 * holds > judged:
        verdict = "supported"
    elif 2 * fails >= judged:
        verdict = "not supported"
    else:
        verdict = "inconclusive"
    effect, low, high = (float(x) for x in evidence.effect[:, applicable].mean(1))
    interval = (low, high) if np.isfinite(low + high) else None
    return finding(verdict, sentence, n, effect if np.isfinite(effect) else None, interval)


class _Fall:
    """The fall of the cosines across norm1: (3, blocks) each, value, low and high end of the interval."""

    def __init__(self, analysis: Analysis) -> None:
        metric = "norm_differentiation"
        self.stages = {
            part: read_blocks(analysis, metric, part, "cls-patch", optional=True)
            for part in ("centring", "gamma", "beta")
        }
        self.before, self.after, self.total = (
            read_blocks(analysis, metric, part, "cls-patch") for part in ("before", "after", "total")
        )
        weights = [stage for part, stage in self.stages.items() if part != "centring" and stage is not None]
        self.learned = np.sum(weights, axis=0) if weights else np.zeros_like(self.total)
        self.n = count_images(analysis, metric)

    @property
    def learned_somewhat(self) -> NDArray[np.bool_]:
        """Whether γ and β lower the CLS–patch cosine in each block, by the value."""
        return self.learned[0] >= MIN_FALL


def _check_fall(analysis: Analysis) -> _Evidence:
    fall = _Fall(analysis)
    conditions = [above(fall.total, MIN_FALL), 1 - above(fall.after, ABOUT_ZERO), above(fall.learned, MIN_FALL)]

    def observed(blocks: NDArray[np.bool_]) -> str:
        effect = fall.total[:, blocks].mean(1)
        names = {"centring": "centring", "gamma": "γ", "beta": "β"}
        stages = [
            f"{names[part]} {format_number(stage[0, blocks].mean())}"
            for part, stage in fall.stages.items()
            if stage is not None
        ]
        largest = int(np.where(blocks, fall.total[0], -np.inf).argmax())
        sentence = (
            f"Across norm1 CLS–patch cosine goes from {format_number(fall.before[0, blocks].mean())} to "
            f"{format_number(fall.after[0, blocks].mean())}: it falls by {format_number(effect[0])} "
            f"({format_interval(effect)}), most in block {largest}. By stage: {', '.join(stages) or 'γ alone'}."
        )
        if 2 * int((above(fall.total, MIN_FALL) == 1).sum()) > len(blocks):
            sentence += f" {describe_trend(fall.total[0])}"
        return sentence

    otherwise = f"CLS and patches are apart before norm1 already (cosine below {ABOUT_ZERO})"
    return _Evidence(fall.before[0] >= ABOUT_ZERO, conditions, fall.total, observed, otherwise, fall.n)


def _patches(analysis: Analysis, least: float) -> tuple[Array, Array, NDArray[np.bool_], str, int]:
    """Return patch–patch before and after norm1, the blocks in which it is to be judged, and why not in the others."""
    fall = _Fall(analysis)
    before, after = (read_blocks(analysis, "norm_differentiation", p, "patch-patch") for p in ("before", "after"))
    otherwise = (
        f"Across norm1 γ and β do not lower CLS–patch cosine by {MIN_FALL}, or patch–patch is not above {least:g} "
        "before it,"
    )
    return before, after, fall.learned_somewhat & (before[0] > least), otherwise, fall.n


def _describe_patches(before: Array, after: Array) -> Callable[[NDArray[np.bool_]], str]:
    def observed(blocks: NDArray[np.bool_]) -> str:
        means = after[:, blocks].mean(1)
        return (
            f"Across norm1 patch–patch cosine goes from {format_number(before[0, blocks].mean())} to "
            f"{format_number(means[0])} ({format_interval(means)})."
        )

    return observed


def _check_positive(analysis: Analysis) -> _Evidence:
    before, after, applicable, otherwise, n = _patches(analysis, 0.0)
    return _Evidence(applicable, [above(after, 0.0)], after, _describe_patches(before, after), otherwise, n)


def _check_stable(analysis: Analysis) -> _Evidence:
    before, after, applicable, otherwise, n = _patches(analysis, ABOUT_ZERO)
    kept = ratio(after, before)
    return _Evidence(applicable, [above(kept, KEPT)], kept, _describe_patches(before, after), otherwise, n)


class _Profiles:
    """The distance of the energy profiles above that of random rotations, (3, blocks), and its conditions."""

    def __init__(self, analysis: Analysis) -> None:
        metric = "energy_profile"
        self.distance, self.above_rotated = (
            read_blocks(analysis, metric, part, "cls-patch") for part in ("distance", "above_rotated")
        )
        self.mean, limit = (
            read_blocks(analysis, metric, part, "cls-patch")[0] for part in ("rotated_mean", "rotated_95")
        )
        self.conditions = [above(self.above_rotated, limit - self.mean), above(self.above_rotated, ABOVE_ROTATIONS)]
        self.n = count_images(analysis, metric)


def _check_channels(analysis: Analysis) -> _Evidence:
    profiles = _Profiles(analysis)

    def observed(blocks: NDArray[np.bool_]) -> str:
        if np.isnan(profiles.distance).any():
            return "The energy profiles of CLS and patches cannot be compared."
        mean, more = profiles.distance[0, blocks].mean(), profiles.above_rotated[:, blocks].mean(1)
        sentence = (
            f"The energy profiles of CLS and patches over the channels of norm1's input are {format_number(mean)} "
            "apart (total variation)"
        )
        if np.isnan(more[0]):
            return f"{sentence}."
        return f"{sentence}: {format_number(more[0])} more than after random rotations ({format_interval(more)})."

    everywhere = np.ones(profiles.distance.shape[1], dtype=bool)
    return _Evidence(everywhere, profiles.conditions, profiles.above_rotated, observed, "", profiles.n)


def _check_place(analysis: Analysis) -> _Evidence:
    profiles, fall = _Profiles(analysis), _Fall(analysis)
    share = read_blocks(analysis, "energy_profile", "fall_share", "cls-patch")
    limit = read_blocks(analysis, "energy_profile", "random_95", "cls-patch")[0]
    applicable = (fall.total[0] >= MIN_FALL) & (np.min(profiles.conditions, axis=0) == 1)

    def observed(blocks: NDArray[np.bool_]) -> str:
        return (
            f"{100 * share[0, blocks].mean():.0f} % of the fall of CLS–patch cosine across norm1 lies in the 1 % of "
            f"the channels (at least five) whose energy differs most; as many random channels have up to "
            f"{100 * limit[blocks].mean():.0f} % (95 % quantile)."
        )

    otherwise = f"CLS–patch cosine does not fall by {MIN_FALL} across norm1, or F2(a) does not hold,"
    conditions = [above(share, SITS_IN), above(share, limit)]
    return _Evidence(applicable, conditions, share, observed, otherwise, profiles.n)


_CHECKS = {
    "F1(a)": _check_fall,
    "F1(b)": _check_positive,
    "F1(c)": _check_stable,
    "F2(a)": _check_channels,
    "F2(b)": _check_place,
}


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
