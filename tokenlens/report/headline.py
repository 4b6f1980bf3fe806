"""The answer of an analysis in one sentence: what the norm before attention does to [CLS] and patches."""

from __future__ import annotations

from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.block_numbers import NumbersMissing, above, format_number, read_blocks
from tokenlens.analysis.findings import Finding, norms_come_first
from tokenlens.analysis.overview import mean_fall
from tokenlens.analysis.rules import ABOUT_ZERO, MIN_FALL, MIN_IMAGES
from tokenlens.storage.wording import counted

METRIC = "norm_differentiation"
NORM = "the norm before attention"


class Headline(NamedTuple):
    """A sentence about a model: the text before its name, the name, and the text after it; and a line of facts."""

    before: str
    model: str
    after: str
    facts: str

    @property
    def sentence(self) -> str:
        """The whole sentence."""
        return f"{self.before}{self.model}{self.after}"


def headline(analysis: Analysis, finding: Finding) -> Headline:
    """Return the sentence and the facts that an analysis' page begins with.

    Args:
        analysis: the numbers.
        finding: the verdict on F1(a), by which the sentence is chosen.
    """
    facts = _facts(analysis)
    if "cls" not in analysis.layout.prefix:
        return Headline("", analysis.model, " has no [CLS] token; this page describes its other tokens.", facts)
    if not norms_come_first(analysis):
        follows = ", a norm follows attention instead of preceding it: the paper's first finding does not apply."
        return Headline("In ", analysis.model, follows, facts)
    try:
        before, after, total = (
            read_blocks(analysis, METRIC, part, "cls-patch") for part in ("before", "after", "total")
        )
    except NumbersMissing:
        reason = analysis.not_applicable.get(METRIC, f"{METRIC} was not computed")
        return Headline("Not measured: what the norms of ", analysis.model, f" do to [CLS] ({reason}).", facts)
    cosines = f"cosine {format_number(before[0].mean())} → {format_number(after[0].mean())}"
    falls = int((above(total, MIN_FALL) == 1).sum())
    sentence = _sentence(analysis, finding, before, falls, cosines)
    change = f"mean over {counted(total.shape[1], 'block')}"
    for row in mean_fall(analysis).dropna(subset=["ci_low", "ci_high"]).itertuples():
        fall, low, high = (format_number(value) for value in (row.value, row.ci_low, row.ci_high))
        change += f"; fall {fall}, 95 % interval {low} to {high}"
    return Headline(sentence[0], analysis.model, f"{sentence[1]}.", f"{facts} · {change}")


def _sentence(
    analysis: Analysis, finding: Finding, before: NDArray[np.float64], falls: int, cosines: str
) -> tuple[str, str]:
    """Return the text before and after the model's name."""
    blocks = before.shape[1]
    where = f"all {blocks} blocks" if falls == blocks > 1 else f"{falls} of {counted(blocks, 'block')}"
    pulls = f", {NORM} pulls [CLS] away from the patches"
    if analysis.untrained:
        return f"Untrained control: across {NORM} of ", f", the cosine of [CLS] and patches goes {cosines[7:]}"
    if finding.n < MIN_IMAGES:
        images = counted(finding.n, "image")
        return f"On {images} only, across {NORM} of ", f": {cosines} of [CLS] and patches; a verdict needs {MIN_IMAGES}"
    if finding.verdict == "supported":
        return "In ", f"{pulls} in {where}: {cosines}"
    if finding.verdict == "inconclusive":
        return "In ", f", it is open whether {NORM} pulls [CLS] away from the patches: {cosines}"
    if finding.verdict == "not applicable":
        apart = int((before[0] < ABOUT_ZERO).sum())
        return "In ", f", [CLS] and patches are apart before the norm already in {apart} of {blocks} blocks: {cosines}"
    if 2 * falls <= blocks:
        if falls:
            return "In ", f"{pulls} in {where} only: {cosines}"
        return "In ", f", {NORM} does not pull [CLS] away from the patches: {cosines}"
    if _learned(analysis) < MIN_FALL:
        return "In ", f", [CLS] and patches move apart across {NORM}, but not by its weights: {cosines}"
    return "In ", f"{pulls} in {where}, but not to about 0: {cosines}"


def _learned(analysis: Analysis) -> float:
    """Return the mean over blocks of the fall by γ and β."""
    parts = [read_blocks(analysis, METRIC, part, "cls-patch", optional=True) for part in ("gamma", "beta")]
    return sum(float(part[0].mean()) for part in parts if part is not None)


def _facts(analysis: Analysis) -> str:
    """Return n, size and weights."""
    provenance = analysis.provenance
    size = " × ".join(map(str, provenance.get("image_size") or []))
    images = f"n = {counted(analysis.images, 'image')}" + (f" of {size} pixels" if size else "")
    source = str(provenance.get("weights", {}).get("source", ""))
    weights = "random weights" if analysis.untrained else f"weights: {PurePath(source.split(', ')[0]).name}"
    return " · ".join([images, *([weights] if source or analysis.untrained else [])])
