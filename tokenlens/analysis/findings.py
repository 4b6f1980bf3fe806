"""Judge the findings F1 and F2 of the paper on one analyzed model.

Revisiting [CLS] and Patch Token Interaction in Vision Transformers (arXiv 2602.08626):

F1. The norm before attention differentiates: CLS–patch cosine falls to about 0 across it, patch–patch cosine stays.
F2. It does so through channels: some are large in CLS only or in patches only, which the norm's weights exploit.

F3 to F6 need trained models: ``tokenlens.verification.findings``.

Each condition of a finding is checked in each block by comparing the 95 % interval of a number with a threshold: it
holds if the whole interval lies on the right side, fails if the whole interval lies on the wrong side, and is open
otherwise. A finding is *supported* if all conditions hold in more than half of the blocks, *not supported* if some
condition fails in at least half of them, and *inconclusive* otherwise, with fewer than ``MIN_IMAGES`` images, and if
the numbers were not computed. Both findings are about trained models: with random weights they are *not applicable*.

The thresholds were chosen by looking at one trained model (DINOv2 ViT-S/14) and at random weights. Two random
directions in 384 channels have a cosine of 0 ± 0.05, so a fall below 0.05 counts as none and a cosine up to 0.1 as
about 0.

F2 is about channels, and magnitudes alone do not show them: in DINOv2 ViT-S/14, 5 channels hold 90 % of CLS's squared
norm after norm1, so 54 % of the channels are three times larger in patches because of one common scale. Each group's
magnitudes are therefore divided by their median over channels first (``selective_share``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

if TYPE_CHECKING:
    from tokenlens.analysis.analysis import Analysis

Array = NDArray[np.float64]
Verdict = Literal["supported", "not supported", "inconclusive", "not applicable"]

MIN_IMAGES = 8
"""The fewest images that give a verdict."""

MIN_FALL = 0.05
"""The smallest fall that counts: the spread of the cosine of random directions in 384 channels."""

ABOUT_ZERO = 0.1
"""The largest cosine that counts as about 0: two such spreads."""

SELECTIVE = 0.5
"""|s| above which a channel counts as specific to one token group, as in dimension_selectivity."""

_MEDIAN = stats.norm.ppf(0.75)
CHANCE_SHARE = float(2 * stats.norm.cdf(_MEDIAN / 3) - 1 + 2 * stats.norm.sf(3 * _MEDIAN))
"""Share of channels with |s| > 0.5 for CLS in a random direction and patches that are equally large in all channels,
each divided by its median m over channels: P(|z| < m/3) + P(|z| > 3m), z normal, m the median of |z|."""

TITLES = {
    "F1": "The norm before attention separates CLS from the patches",
    "F2": "It does so through specific channels, which the norm's weights exploit",
}

RULES = {
    "F1": (
        f"F1 holds in a block if, across norm1, CLS–patch cosine (a) falls by at least {MIN_FALL} and (b) ends at or "
        f"below {ABOUT_ZERO}, while patch–patch cosine (c) stays above 0 and (d) falls by less than CLS–patch cosine. "
        "Supported: it holds in more than half of the blocks. Not supported: a condition fails in at least half. All "
        "conditions are judged by 95 % intervals over images. The trend with depth is reported and does not decide; "
        "its p is nominal because blocks are not independent."
    ),
    "F2": (
        "F2 holds in a block if (a) the share of selective channels at norm1's output (|s| > 0.5: three times larger "
        "in one group, after each group's magnitudes are divided by their median over channels) exceeds that of a CLS "
        f"token of random direction ({100 * CHANCE_SHARE:.0f} %) and (b) γ and β together lower CLS–patch cosine by at "
        f"least {MIN_FALL}. Supported: it holds in more than half of the blocks. Not supported: a condition fails in "
        "at least half. The 95 % intervals are over channels in (a) and over images in (b). Without the division, a "
        "common scale counts as well: if a few channels hold most of CLS's norm, all others are larger in patches. "
        "That share and the correlation of |γ| with selectivity are reported and do not decide."
    ),
}


@dataclass(frozen=True)
class Finding:
    """A finding judged on one analysis, or on trained models over seeds.

    Attributes:
        name: F1 to F6.
        title: the claim in a few words.
        verdict: supported, not supported, inconclusive or not applicable.
        sentence: the observation, with numbers.
        n: number of images.
        effect: size of the effect, None if there is none: for F1 and F2 a difference of cosines, for F3, F5 and F6
            percentage points of mean IoU, for F4 per cent of the parameters.
        interval: its 95 % interval: for one analysis the mean of the intervals of the blocks, which is conservative;
            for several models over seeds.
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
    """Judge F1 and F2 on one model, by the rules in this module's docstring."""
    return [_judge(analysis, "F1", _judge_f1), _judge(analysis, "F2", _judge_f2)]


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
    """The outcome of one check in each block (1 holds, 0 fails, 0.5 open), with sentence, effect and n."""

    outcomes: Array
    sentence: str
    effect: Array
    n: int


class _NoNumbers(Exception):
    """A metric that a check needs is missing; the second argument is the reason, if known."""


def _judge(analysis: Analysis, name: str, check: Callable[[Analysis], _Evidence]) -> Finding:
    try:
        if "cls" not in analysis.layout.prefix:
            raise _NoNumbers(name, "the model has no [CLS] token")
        if not norms_come_first(analysis):
            raise _NoNumbers(name, "in this post-norm model norm1 comes after attention")
        evidence = check(analysis)
    except _NoNumbers as missing:
        metric = missing.args[0]
        reason = missing.args[1] if len(missing.args) > 1 else analysis.not_applicable.get(metric)
        verdict: Verdict = "not applicable" if reason else "inconclusive"
        sentence = f"{metric} does not apply: {reason}." if reason else f"{metric} was not computed in this analysis."
        return Finding(name, TITLES[name], verdict, sentence, 0, None, None, RULES[name])
    blocks = len(evidence.outcomes)
    holds, fails = int((evidence.outcomes == 1).sum()), int((evidence.outcomes == 0).sum())
    sentence = f"{evidence.sentence} All conditions hold in {holds} of {_plural(blocks, 'block')}."
    if analysis.untrained:
        verdict = "not applicable"
        sentence = f"Untrained model (random weights), a control. {sentence}"
    elif evidence.n < MIN_IMAGES:
        verdict = "inconclusive"
        sentence = f"{_plural(evidence.n, 'image')} only; a verdict needs {MIN_IMAGES}. {sentence}"
    elif 2 * holds > blocks:
        verdict = "supported"
    elif 2 * fails >= blocks:
        verdict = "not supported"
    else:
        verdict = "inconclusive"
    effect, low, high = (float(x) for x in evidence.effect)
    interval = None if np.isnan(low + high) else (low, high)
    return Finding(name, TITLES[name], verdict, sentence, evidence.n, effect, interval, RULES[name])


def _judge_f1(analysis: Analysis) -> _Evidence:
    parts = ("before", "after", "total")
    cls = {part: _blocks(analysis, "norm_differentiation", part, "cls-patch") for part in parts}
    patch = {part: _blocks(analysis, "norm_differentiation", part, "patch-patch") for part in parts}
    fall, least = cls["total"], patch["total"]
    conditions = (
        _above(fall, MIN_FALL),
        1 - _above(cls["after"], ABOUT_ZERO),
        _above(patch["after"], 0.0),
        _above(np.stack([fall[0] - least[0], fall[1] - least[2], fall[2] - least[1]]), 0.0),
    )
    blocks = fall.shape[1]
    falls, positive = (int((conditions[i] == 1).sum()) for i in (0, 2))
    effect = fall.mean(1)
    sentence = (
        f"Across norm1 CLS–patch cosine clearly falls in {falls} of {_plural(blocks, 'block')}, on average from "
        f"{_number(cls['before'][0].mean())} to {_number(cls['after'][0].mean())} "
        f"(by {_number(effect[0])}, {_interval(effect)}; largest {_number(fall[0].max())} in block "
        f"{int(fall[0].argmax())}); patch–patch cosine stays clearly positive in {positive} and goes from "
        f"{_number(patch['before'][0].mean())} to {_number(patch['after'][0].mean())}."
    )
    if 2 * falls > blocks:
        sentence += f" {_trend(fall[0])}"
    return _Evidence(np.min(conditions, axis=0), sentence, effect, _count(analysis, "norm_differentiation"))


def selective_share(cls_BD: Array, patch_BD: Array) -> tuple[Array, Array]:
    """Compute the shares of channels that are three times larger in CLS, and in patches, without a common scale.

    Args:
        cls_BD: mean magnitude of CLS in each block and channel.
        patch_BD: mean magnitude of the patches.

    Returns:
        Two arrays (B,) in [0, 1].

    >>> cls, patch = np.array([[1.0, 1.0, 1.0, 9.0]]), np.array([[50.0, 50.0, 50.0, 50.0]])
    >>> [share.tolist() for share in selective_share(cls, patch)]
    [[0.25], [0.0]]
    """
    cls, patch = (group / np.median(group, axis=-1, keepdims=True) for group in (cls_BD, patch_BD))
    s_BD = (cls - patch) / (cls + patch)
    return (s_BD > SELECTIVE).mean(-1), (s_BD < -SELECTIVE).mean(-1)


def _judge_f2(analysis: Analysis) -> _Evidence:
    before = _blocks(analysis, "dimension_selectivity", "output_share", "cls-patch")
    arrays = [analysis.arrays.get(f"dimension_selectivity/{group}_output_norm1") for group in ("cls", "patch")]
    if any(array is None for array in arrays):
        raise _NoNumbers("dimension_selectivity")
    cls_BD, patch_BD = (np.asarray(array.values, dtype=np.float64) for array in arrays if array is not None)
    cls_BD, patch_BD = (x_BD[~np.isnan(cls_BD).all(-1)] for x_BD in (cls_BD, patch_BD))  # blocks without CLS
    channels = cls_BD.shape[-1]
    larger = selective_share(cls_BD, patch_BD)
    share = np.sum(larger, axis=0)
    error = stats.norm.ppf(0.975) * np.sqrt(share * (1 - share) / channels)
    shares = np.stack([share, share - error, share + error])
    total = _blocks(analysis, "norm_differentiation", "total", "cls-patch")
    present = [
        _blocks(analysis, "norm_differentiation", part, "cls-patch")
        for part in ("gamma", "beta")
        if not _rows(analysis, "norm_differentiation", part).empty
    ]
    weights = np.sum(present, axis=0) if present else np.zeros_like(total)
    blocks = weights.shape[1]
    conditions = (_above(shares, CHANCE_SHARE), _above(weights, MIN_FALL))
    effect = weights.mean(1)
    selective = int((conditions[0] == 1).sum())
    out, in_cls, in_patch = (100 * each for each in (share, *larger))
    sentence = (
        f"At norm1's output {out.mean():.0f} % of the {channels} channels are at least three times larger in one group "
        f"than in the other once each group's common scale is taken out: {in_cls.mean():.0f} % in CLS, "
        f"{in_patch.mean():.0f} % in patches (blocks: {out.min():.0f} to {out.max():.0f} %; chance "
        f"{100 * CHANCE_SHARE:.0f} %, clearly exceeded in {selective} of {_plural(blocks, 'block')}); with that scale "
        f"{100 * before[0].mean():.0f} %. Its weights γ and β lower CLS–patch cosine by "
        f"{_number(effect[0])} on average ({_interval(effect)}) of {_number(total[0].mean())} in all. "
        f"{_gamma(analysis, channels)}"
    )
    return _Evidence(np.min(conditions, axis=0), sentence, effect, _count(analysis, "dimension_selectivity"))


def _gamma(analysis: Analysis, channels: int) -> str:
    if _rows(analysis, "dimension_selectivity", "output_gamma_correlation").empty:
        return "The norm has no γ."
    rho = _blocks(analysis, "dimension_selectivity", "output_gamma_correlation", "cls-patch")[0]
    if np.isnan(rho).all():
        return "γ is the same for all channels."
    larger = int((rho > stats.norm.ppf(0.975) / np.sqrt(channels - 1)).sum())
    return (
        f"|γ| is larger on selective channels in {larger} of {_plural(len(rho), 'block')} "
        f"(rank correlation with |s|: median {_number(float(np.nanmedian(rho)))})."
    )


def _rows(analysis: Analysis, metric: str, part: str) -> pd.DataFrame:
    table = analysis.table
    return table[(table["metric"] == metric) & (table["part"] == part) & (table["site"] == "norm1")]


def _blocks(analysis: Analysis, metric: str, part: str, group: str) -> Array:
    """Return value, low and high end of the interval in each block at norm1, (3, blocks)."""
    rows = _rows(analysis, metric, part)
    with_cls = rows.loc[rows["group"] == "cls-patch", "block"]  # CaiT has CLS in its last blocks only
    rows = rows[(rows["group"] == group) & rows["block"].isin(with_cls)].sort_values("block")
    if rows.empty:
        raise _NoNumbers(metric)
    return rows[["value", "ci_low", "ci_high"]].to_numpy(dtype=float).T


def _count(analysis: Analysis, metric: str) -> int:
    return int(analysis.table.loc[analysis.table["metric"] == metric, "n"].max())


def _above(bounds: Array, threshold: float) -> Array:
    """Return 1 where the whole interval is at or above the threshold, 0 where it is below, 0.5 where it is open."""
    _, low, high = bounds
    return np.where(low >= threshold, 1.0, np.where(high < threshold, 0.0, 0.5))


def _trend(fall: Array) -> str:
    if len(fall) < 5:
        return f"{_plural(len(fall), 'block')}: too few for a trend with depth."
    if np.ptp(fall) == 0:
        return "The fall is the same in all blocks."
    rho, p = stats.spearmanr(np.arange(len(fall)), fall)
    how = "does not clearly change" if p >= 0.05 else ("grows" if rho > 0 else "shrinks")
    written = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    return f"The fall {how} with depth (Spearman's ρ = {_number(float(rho))}, {written})."


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _number(value: float) -> str:
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _interval(bounds: Array) -> str:
    if np.isnan(bounds[1:]).any():
        return "no interval"
    return f"95 % interval {_number(bounds[1])} to {_number(bounds[2])}"
