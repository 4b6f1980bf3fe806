"""The rows of an analysis that a figure draws, or a clear reason why there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tokenlens.analysis.findings import norms_come_first
from tokenlens.figures.base import NothingToDraw
from tokenlens.metrics.base import metrics

if TYPE_CHECKING:
    from tokenlens.analysis.analysis import Analysis

NORMS = {"norm1": "norm1 ({} attention)", "norm2": "norm2 ({} MLP)", "final_norm": "final"}
"""Titles of the panels of the norms; what is open is where the model has them."""

PAIRS = {
    "cls-patch": "CLS–patch",
    "patch-patch": "patch–patch",
    "cls-cls": "CLS–CLS",
    "reg-cls": "register–CLS",
    "reg-patch": "register–patch",
}
GROUPS = {"cls": "CLS", "dist": "distillation token", "reg": "registers", "patch": "patches"}


OF_WEIGHTS = ("weight_distance",)
"""Metrics that no image is behind."""

BEFORE_AFTER = (
    "model",
    "metric",
    "group",
    "norm",
    "place",
    "state",
    "block",
    "site",
    "value",
    "sd",
    "n",
    "ci_low",
    "ci_high",
    "unit",
)
"""Columns of a frame that ``draw_before_after`` draws."""


def title_of(analysis: Analysis) -> str:
    """The model's full name, and "(untrained)" behind it where the weights are random."""
    return f"{analysis.model} (untrained)" if analysis.untrained else str(analysis.model)


def place_of(analysis: Analysis) -> str:
    """Where the model has its norms: "before" attention and MLP or, in post-norm blocks, "after" them."""
    return "before" if norms_come_first(analysis) else "after"


def norm_title(frame: pd.DataFrame) -> Callable[[str], str]:
    """What the panel of a norm is called, from a frame with the column ``place``."""
    return lambda norm: NORMS[norm].format(frame["place"].iloc[0])


def pair_title(group: str) -> str:
    """A pair of groups or a group in words."""
    return PAIRS.get(group) or GROUPS.get(group) or group.replace("-", " → ")


def quantity_title(row: Any) -> str:
    """In words what a row of differences is about: the metric's title, the part, the site, the groups and the block."""
    title = metrics.get(row.metric).title if row.metric in metrics.names() else row.metric
    group, block = pair_title(row.group), getattr(row, "block", None)
    told = [title + (f" ({row.part.replace('_', ' ')})" if row.part else "")]
    told += [row.site] if row.site not in ("", "pattern") else []
    told += [group] if group and group.lower() not in title.lower() else []
    told += [f"block {block}"] if block is not None and not pd.isna(block) else []
    return ", ".join(told)


def in_order(groups: Iterable[str]) -> list[str]:
    """Token groups and pairs in the order in which all figures show them."""
    order = [*GROUPS, *PAIRS]
    return sorted(set(groups), key=lambda group: (order.index(group) if group in order else len(order), group))


def listed(names: str | Iterable[str]) -> list[str]:
    """A list of names, where one name may stand for itself.

    >>> listed("norm1"), listed(("norm1", "norm2"))
    (['norm1'], ['norm1', 'norm2'])
    """
    return [names] if isinstance(names, str) else list(names)


def missing(analysis: Analysis, metric: str) -> NothingToDraw:
    """The error that says why there are no numbers of a metric."""
    reason = analysis.not_applicable.get(metric)
    if reason:
        return NothingToDraw(f"{metric} does not apply to {analysis.model}: {reason}")
    have = ", ".join(sorted(analysis.table["metric"].unique())) or "none"
    return NothingToDraw(
        f"{metric} was not computed for {analysis.model}. Analyze again with metrics=[{metric!r}, …]. "
        f"This analysis has: {have}."
    )


def rows_of(
    analysis: Analysis,
    metric: str,
    *,
    parts: str | Sequence[str] | None = None,
    sites: str | Sequence[str] | None = None,
    groups: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """The table's rows of one metric, with the model's title in the place of its name; one name stands for a list.

    Raises:
        NothingToDraw: if there are none; the text says what is there.
    """
    table = analysis.table
    found = table[table["metric"] == metric]
    if found.empty:
        raise missing(analysis, metric)
    for column, wanted in (("part", parts), ("site", sites), ("group", groups)):
        if wanted is None:
            continue
        chosen = found[found[column].isin(listed(wanted))]
        if chosen.empty:
            have = ", ".join(repr(str(value)) for value in found[column].unique())
            raise NothingToDraw(
                f"{metric} of {analysis.model} has no {column} {', '.join(map(repr, listed(wanted)))}. It has: {have}."
            )
        found = chosen
    found = without_images(found.copy(), metric)
    found["model"] = title_of(analysis)
    return found.reset_index(drop=True)


def without_images(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of a metric; of one of the weights alone ``n``, which counts elements, is called ``elements``."""
    return rows.assign(elements=rows["n"], n=np.nan) if metric in OF_WEIGHTS else rows


def array_of(analysis: Analysis, metric: str, part: str) -> NDArray[np.float64]:
    """One of a metric's arrays in float64; NothingToDraw if the analysis does not hold it."""
    key = f"{metric}/{part}"
    if not (analysis.table["metric"] == metric).any():
        raise missing(analysis, metric)
    if key not in analysis.arrays:
        have = ", ".join(sorted(name for name in analysis.arrays if name.startswith(f"{metric}/"))) or "none"
        raise NothingToDraw(f"{analysis.model} has no array {key}. It has: {have}.")
    return np.asarray(analysis.arrays[key].values, dtype=np.float64)


def count_of(analysis: Analysis, metric: str) -> int:
    """How many images a metric has seen."""
    counts = analysis.table.loc[analysis.table["metric"] == metric, "n"]
    return int(counts.max()) if len(counts) else 0


def before_after(analysis: Analysis, metrics: Sequence[str], norms: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Metrics of token sites on both sides of each norm, in the columns that ``draw_before_after`` draws.

    ``norms`` are those wanted, by default all that the model has. Before norm1 is ``resid_pre``, before norm2
    ``resid_mid``, before the final norm the last block's ``resid_post``. The final norm stands at block ``blocks``.
    What goes into the norms of post-norm blocks is no site: it is left out.
    """
    frames = []
    place = place_of(analysis)
    for metric in metrics:
        rows = rows_of(analysis, metric)
        last = (rows["block"] == analysis.blocks - 1).fillna(False)
        for norm, before, after in (
            ("norm1", rows["site"] == "resid_pre", rows["site"] == "norm1"),
            ("norm2", rows["site"] == "resid_mid", rows["site"] == "norm2"),
            ("final_norm", (rows["site"] == "resid_post") & last, rows["site"] == "final_norm"),
        ):
            if not after.any() or (norms is not None and norm not in listed(norms)):
                continue
            for state, chosen in (("before", before), ("after", after)):
                if state == "before" and place == "after" and norm != "final_norm":
                    continue
                part = rows[chosen].copy()
                part["norm"], part["place"], part["state"] = norm, place, state
                if norm == "final_norm":
                    part["block"] = analysis.blocks
                frames.append(part)
    found = pd.concat(frames) if frames else pd.DataFrame()
    if found.empty:
        raise NothingToDraw(f"{', '.join(metrics)} of {analysis.model} has no value at a norm.")
    return found[list(BEFORE_AFTER)].reset_index(drop=True)
