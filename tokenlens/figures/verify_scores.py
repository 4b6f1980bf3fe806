"""Score of each model in each probe, and score of the weights that training started from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tokenlens.figures._panels import legend_handle
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
from tokenlens.figures.style import FAINT, sort_variants
from tokenlens.statistics.seed_effects import estimate_effect
from tokenlens.verification.result import Verification
from tokenlens.verification.variants import START

KIND = "verification"
TITLE = "Probe scores of all models"
ORDER = 405
CAPTION = (
    "Each small dot is a trained model; large markers are means over seeds with 95 % intervals (Student's t over "
    "seeds). If training continued from given weights, the grey line is their score before training, with its 95 % "
    "interval over test images as a band. Two variants may differ clearly although their intervals overlap, because "
    "differences are paired by seed; see the figure of paired differences."
)
METRICS: tuple[str, ...] = ()

COLUMNS = ("setting", "variant", "measure", "cell", "seed", "value", "ci_low", "ci_high", "seeds")


def frame(verification: Verification) -> pd.DataFrame:
    """Return the score of each model, of each variant over seeds (rows without ``seed``), and of the start.

    Raises:
        NothingToDraw: if no model was probed.
    """
    each = verification.numbers[verification.numbers["measure"].isin(PROBED)].copy()
    if each.empty:
        raise NothingToDraw("no model has been probed yet")
    each["cell"] = probe_labels(each)
    keys = ["setting", "variant", "measure", "cell"]
    rows = []
    for key, models in each.groupby(keys, sort=False):
        values = dict(zip(models["seed"], models["value"].astype(float), strict=True))
        over = estimate_effect(values, dict.fromkeys(values, 0.0))
        numbers = {"value": over.difference, "ci_low": over.low, "ci_high": over.high, "seeds": over.seeds}
        rows.append({**dict(zip(keys, key, strict=True)), **numbers})
    begun = verification.continued.copy()
    if len(begun):
        begun["cell"] = probe_labels(begun)
        begun = begun.drop_duplicates(["setting", "measure", "cell"]).assign(variant=START, seeds=np.nan)
        begun = begun.assign(value=begun["start"], ci_low=begun["start_low"], ci_high=begun["start_high"])
        rows += begun[[*keys, "value", "ci_low", "ci_high", "seeds"]].to_dict("records")
    # A single model's interval is over images, not over seeds, so it is not shown.
    found = pd.concat([each.assign(ci_low=np.nan, ci_high=np.nan), pd.DataFrame(rows)])
    found["seed"], found["seeds"] = found["seed"].astype("Int64"), found["seeds"].astype("Int64")
    return found[list(COLUMNS)].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a panel each for mean IoU and accuracy, with a row per probe that shows every variant."""
    variants = [name for name in sort_variants(frame["variant"]) if name != START]
    page, panels = probe_panels(frame, ax, variants)
    for panel, measure, rows in panels:
        titles = {name: probe_title(name) for name in sorted(dict.fromkeys(rows["cell"]), key=lambda x: (len(x), x))}
        for y, probe in enumerate(titles):
            low, high = y - 0.42, y + 0.42
            for start in rows[(rows["cell"] == probe) & (rows["variant"] == START)].itertuples(index=False):
                interval = [start.ci_low, start.ci_high]
                panel.fill_between(interval, low, high, color=FAINT, alpha=0.12, linewidth=0, zorder=1)
                panel.vlines(start.value, low, high, color=FAINT, linewidth=1.2, zorder=2)
        dots_and_means(panel, rows, variants, ("cell", titles), "value", "%")
        page.title(panel, PROBED[measure])
    entries = variant_handles(variants)
    page.legend([*entries, legend_handle(START, FAINT, "")] if (frame["variant"] == START).any() else entries)
    variants_note(page, frame)
    return page.figure
