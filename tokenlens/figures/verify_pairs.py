"""Difference between specialized and standard models in each probe, by seed."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.figures._variants import (
    PROBED,
    dots_and_means,
    probe_labels,
    probe_panels,
    probe_title,
    variant_handles,
    variants_note,
)
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import styled
from tokenlens.figures.style import FAINT, INK, sort_variants
from tokenlens.verification.numbers import CLASSES, DENSE
from tokenlens.verification.result import Verification
from tokenlens.verification.rules import CLAIMED_GAIN, MAX_LOSS

KIND = "verification"
TITLE = "Specialized minus standard model, by seed"
ORDER = 400
CAPTION = (
    "Each small dot is the difference between the specialized and the standard model of one seed. Large markers are "
    "means over seeds with 95 % intervals (Student's t over seeds). F3 is judged by the mean over resolutions. The "
    "dashed line for mean IoU is the smallest gain claimed by the paper, that for accuracy the loss up to which "
    "classification counts as kept. Seeds with only one of the two models are left out of the means."
)
METRICS: tuple[str, ...] = ()

COLUMNS = ("setting", "variant", "measure", "cell", "seed", "difference", "ci_low", "ci_high", "seeds")
_LINES = {DENSE: CLAIMED_GAIN, CLASSES: -MAX_LOSS}


def frame(verification: Verification) -> pd.DataFrame:
    """Return the differences of each seed and over seeds (rows without ``seed``), in percentage points.

    Raises:
        NothingToDraw: if no seed has both a specialized and a standard model.
    """
    each, over = verification.differences, verification.effects
    each = each[each["measure"].isin(PROBED)].copy()
    over = over[over["measure"].isin(PROBED) & (over["against"] == "standard")].copy()
    if over.empty:
        raise NothingToDraw("no specialized model can be compared with a standard one yet")
    each["cell"] = probe_labels(each)
    whole = each[(each["measure"] != CLASSES) | (each["source"] == "cls")]
    keys = ["setting", "variant", "measure"]
    several = whole.groupby(keys)["cell"].transform("nunique") > 1
    means = whole[several].groupby([*keys, "seed"], as_index=False)["difference"].mean()
    averaged = pd.MultiIndex.from_frame(over[keys]).isin(pd.MultiIndex.from_frame(means[keys]))
    over = over[(over["cell"] != "mean") | averaged]  # leave out the mean of a single probe
    found = pd.concat([each, means.assign(cell="mean"), over])
    found["seed"] = found["seed"].astype("Int64")
    return found[list(COLUMNS)].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a panel each for mean IoU and accuracy, with a row per probe that shows every variant."""
    variants = sort_variants(frame["variant"])
    page, panels = probe_panels(frame, ax, variants)
    for panel, measure, rows in panels:
        probes = sorted(dict.fromkeys(rows["cell"]), key=lambda probe: (probe != "mean", len(probe), probe))
        titles = {probe: "mean over resolutions" if probe == "mean" else probe_title(probe) for probe in probes}
        dots_and_means(panel, rows, variants, ("cell", titles), "difference", "percentage points")
        panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
        panel.axvline(_LINES[measure], color=FAINT, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
        page.title(panel, f"difference of {PROBED[measure]}")
    page.legend(variant_handles(variants))
    variants_note(page, frame)
    return page.figure
