"""Difference between specialized and standard models in each stage of the norms, by seed."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tokenlens.figures._variants import dots_and_means, setting_panels, variant_handles, variants_note
from tokenlens.figures.base import NothingToDraw
from tokenlens.figures.page import styled
from tokenlens.figures.style import INK, sort_variants
from tokenlens.verification.result import Verification
from tokenlens.verification.stage_effects import ALL

KIND = "verification"
TITLE = "Effect of specialization on each stage of the norms"
ORDER = 440
CAPTION = (
    "Paired difference between specialized and standard models in each part of the fall of the CLS–patch cosine, "
    "averaged over blocks; above 0 the stage separates CLS and patches more in the specialized norm. Each small dot "
    "is a pair of models with the same seed; large markers are means over seeds with 95 % intervals (Student's t over "
    "seeds, not corrected for multiple comparisons). Centring, γ and β add up to the total. The last row is the "
    "additional effect of CLS's specialized γ and β, which is 0 in a standard norm."
)
METRICS = ("norm_differentiation",)

COLUMNS = ("setting", "variant", "norm", "part", "seed", "value", "ci_low", "ci_high", "q", "seeds")
_ROWS = {
    "centring": "centring",
    "gamma": "weight γ",
    "beta": "bias β",
    "total": "total",
    "total_own": "specialized γ, β of CLS",
}


def frame(verification: Verification) -> pd.DataFrame:
    """Return the differences of each seed and over seeds (rows without ``seed``).

    Raises:
        NothingToDraw: if no seed has both a specialized and a standard model.
    """
    over = verification.stages
    over = over[(over["against"] != "") & (over["blocks"] == ALL) & over["part"].isin(_ROWS)]
    if over.empty:
        raise NothingToDraw("no specialized model can be compared with a standard one yet")
    keys = ["setting", "norm", "part", "seed"]
    rows = verification.stages_by_seed
    rows = rows[(rows["blocks"] == ALL) & rows["part"].isin(_ROWS)]
    standard = rows[rows["variant"] == "standard"].set_index(keys)["value"].rename("baseline")
    each = rows[rows["variant"].isin(set(over["variant"]))].join(standard, on=keys)
    # The additional effect of CLS's specialized weights is 0 in standard norms, which have none.
    each["value"] -= each["baseline"].where(each["part"] != "total_own", 0.0)
    found = pd.concat([each.dropna(subset=["value"]), over])
    found["seed"], found["seeds"] = found["seed"].astype("Int64"), found["seeds"].astype("Int64")
    return found.reindex(columns=list(COLUMNS)).reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """Draw a column of panels per norm and a row per setting; within a panel, a row per part."""
    variants = sort_variants(frame["variant"])
    titles = {part: title for part, title in _ROWS.items() if part in set(frame["part"])}
    norms = list(dict.fromkeys(frame["norm"]))
    page, panels = setting_panels(frame, ax, norms, (10, 18 + len(titles) * (4 + 3 * len(variants))))
    for panel, norm, rows in panels:
        dots_and_means(panel, rows[rows["norm"] == norm], variants, ("part", titles), "value", "cosine")
        panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
        page.title(panel, f"difference at {norm}")
    page.legend(variant_handles(variants))
    variants_note(page, frame)
    return page.figure
