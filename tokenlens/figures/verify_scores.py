"""What every model scores in each probe, and what the weights that it started from scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tokenlens.figures._panels import handle
from tokenlens.figures._variants import (
    PROBED,
    dots_and_means,
    probe_name,
    probed_cell,
    seeds_text,
    variant_handles,
    variants_in_order,
)
from tokenlens.figures.base import VERIFICATION, NothingToDraw
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.figures.style import FAINT
from tokenlens.statistics.seed_effects import effect_of
from tokenlens.verification.variants import START

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.verification.verify import Verification

TITLE = "What the models score"
ORDER = 405
OF = VERIFICATION
CAPTION = (
    "Each small dot is a trained model, large markers are means over seeds with 95 % intervals (Student's t over "
    "seeds). Where trainings continued from given weights, the grey line is what these scored before, with their 95 % "
    "interval over test images as a band. Intervals of two variants may overlap and their paired difference still be "
    "clear: that is drawn seed by seed in another figure."
)
METRICS: tuple[str, ...] = ()

COLUMNS = ("setting", "variant", "measure", "cell", "seed", "value", "ci_low", "ci_high", "seeds")


def frame(verification: Verification) -> pd.DataFrame:
    """The score of each model (with its ``seed``), of each variant over seeds (without), and of the start.

    Raises:
        NothingToDraw: if no model was probed.
    """
    each = verification.numbers[verification.numbers["measure"].isin(PROBED)].copy()
    if each.empty:
        raise NothingToDraw("no model was probed yet")
    each["cell"] = probed_cell(each)
    keys = ["setting", "variant", "measure", "cell"]
    rows = []
    for key, models in each.groupby(keys, sort=False):
        values = dict(zip(models["seed"], models["value"].astype(float), strict=True))
        over = effect_of(values, dict.fromkeys(values, 0.0))
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "value": over.difference,
                "ci_low": over.low,
                "ci_high": over.high,
                "seeds": over.seeds,
            }
        )
    begun = verification.continued.copy()
    if len(begun):
        begun["cell"] = probed_cell(begun)
        begun = begun.drop_duplicates(["setting", "measure", "cell"]).assign(variant=START, seeds=np.nan)
        begun = begun.assign(value=begun["start"], ci_low=begun["start_low"], ci_high=begun["start_high"])
        rows += begun[[*keys, "value", "ci_low", "ci_high", "seeds"]].to_dict("records")
    # A model's own interval is over images and has no place between those over seeds.
    told = pd.concat([each.assign(ci_low=np.nan, ci_high=np.nan), pd.DataFrame(rows)])
    told["seed"], told["seeds"] = told["seed"].astype("Int64"), told["seeds"].astype("Int64")
    return told[list(COLUMNS)].reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """A panel for mean IoU and one for accuracy; a row for each probe, in each row every variant.

    Args:
        frame: of ``frame``.
        ax: one Axes for each panel; a new figure by default.
    """
    settings = list(dict.fromkeys(frame["setting"]))
    measures = [measure for measure in PROBED if measure in set(frame["measure"])]
    variants = [name for name in variants_in_order(frame["variant"]) if name != START]
    rows = max(frame[frame["measure"] == measure]["cell"].nunique() for measure in measures)
    tall = 18 + rows * (7 + 4 * len(variants))
    narrow = paper().narrow and ax is None
    shape = (len(settings) * len(measures), 1) if narrow else (len(settings), len(measures))
    page = canvas(ax, *shape, 10 + tall * shape[0])
    panels = iter(page.axes.flat)
    for setting in settings:
        for measure in measures:
            panel = next(panels)
            _panel(panel, frame[(frame["setting"] == setting) & (frame["measure"] == measure)], variants)
            page.title(panel, PROBED[measure])
    entries = variant_handles(variants)
    page.legend([*entries, handle(START, FAINT, "")] if (frame["variant"] == START).any() else entries)
    page.note(" · ".join([*settings, seeds_text(frame["seed"].dropna())]))
    return page.figure


def _panel(panel: Axes, rows: pd.DataFrame, variants: list[str]) -> None:
    cells = sorted(dict.fromkeys(rows["cell"]), key=lambda cell: (len(cell), cell))
    for place, cell in enumerate(cells):
        inside = rows[rows["cell"] == cell]
        for begun in inside[inside["variant"] == START].itertuples(index=False):
            panel.fill_between(
                [begun.ci_low, begun.ci_high],
                place - 0.42,
                place + 0.42,
                color=FAINT,
                alpha=0.12,
                linewidth=0,
                zorder=1,
            )
            panel.vlines(begun.value, place - 0.42, place + 0.42, color=FAINT, linewidth=1.2, zorder=2)
        dots_and_means(panel, inside, variants, place, "value")
    panel.set_yticks(range(len(cells)), [probe_name(cell) for cell in cells])
    panel.set_ylim(len(cells) - 0.5, -0.5)
    panel.grid(axis="x")
    panel.set_xlabel("%")
