"""What specialization changes in each stage of the norms, seed by seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes

from tokenlens.figures._variants import dots_and_means, seeds_text, variant_handles, variants_in_order
from tokenlens.figures.base import VERIFICATION, NothingToDraw
from tokenlens.figures.page import canvas, paper, styled
from tokenlens.figures.style import INK
from tokenlens.verification.stage_effects import ALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.verification.verify import Verification

TITLE = "What specialization changes in each stage of the norms"
ORDER = 440
OF = VERIFICATION
CAPTION = (
    "The paired difference, specialized less standard, of the parts of the fall of the CLS–patch cosine, mean over "
    "blocks: above 0 the stage of the specialized norm pulls CLS and patches further apart. Each small dot is a pair "
    "of models of one seed, large markers are means over seeds with 95 % intervals (Student's t over seeds, not "
    "corrected for their number). Centring, γ and β add up to the total. The last row is what CLS's own γ and β add to "
    "its fall; in a standard norm they are the patches' and add 0."
)
METRICS = ("norm_differentiation",)

COLUMNS = ("setting", "variant", "norm", "part", "seed", "value", "ci_low", "ci_high", "q", "seeds")
_ROWS = {"centring": "centring", "gamma": "weight γ", "beta": "bias β", "total": "total", "total_own": "CLS's own γ, β"}


def frame(verification: Verification) -> pd.DataFrame:
    """Differences of each pair (with its ``seed``) and over seeds (without).

    Raises:
        NothingToDraw: if there is no pair.
    """
    over = verification.stages
    over = over[(over["against"] != "") & (over["blocks"] == ALL) & over["part"].isin(_ROWS)]
    if over.empty:
        raise NothingToDraw("no specialized model has a standard one to be set against yet")
    keys = ["setting", "norm", "part", "seed"]
    rows = verification.stages_by_seed
    rows = rows[(rows["blocks"] == ALL) & rows["part"].isin(_ROWS)]
    standard = rows[rows["variant"] == "standard"].set_index(keys)["value"].rename("baseline")
    each = rows[rows["variant"].isin(set(over["variant"]))].join(standard, on=keys)
    # Standard norms have no weights of CLS's own, which adds 0.
    each["value"] -= each["baseline"].where(each["part"] != "total_own", 0.0)
    told = pd.concat([each.dropna(subset=["value"]), over])
    told["seed"], told["seeds"] = told["seed"].astype("Int64"), told["seeds"].astype("Int64")
    return told.reindex(columns=list(COLUMNS)).reset_index(drop=True)


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Figure:
    """A column of panels for each norm, a row for each setting; in each panel a row for each part.

    Args:
        frame: of ``frame``.
        ax: one Axes for each panel; a new figure by default.
    """
    settings, norms = (list(dict.fromkeys(frame[name])) for name in ("setting", "norm"))
    variants = variants_in_order(frame["variant"])
    narrow = paper().narrow and ax is None
    shape = (len(settings) * len(norms), 1) if narrow else (len(settings), len(norms))
    parts = [part for part in _ROWS if part in set(frame["part"])]
    page = canvas(ax, *shape, 10 + (18 + len(parts) * (4 + 3 * len(variants))) * shape[0])
    panels = iter(page.axes.flat)
    for setting in settings:
        for norm in norms:
            panel = next(panels)
            _panel(panel, frame[(frame["setting"] == setting) & (frame["norm"] == norm)], variants, parts)
            page.title(panel, f"difference at {norm}")
    page.legend(variant_handles(variants))
    page.note(" · ".join([*settings, seeds_text(frame["seed"].dropna())]))
    return page.figure


def _panel(panel: Axes, rows: pd.DataFrame, variants: list[str], parts: list[str]) -> None:
    for place, part in enumerate(parts):
        dots_and_means(panel, rows[rows["part"] == part], variants, place, "value")
    panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
    panel.set_yticks(range(len(parts)), [_ROWS[part] for part in parts])
    panel.set_ylim(len(parts) - 0.5, -0.5)
    panel.grid(axis="x")
    panel.set_xlabel("cosine")
