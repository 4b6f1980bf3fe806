"""Select the numbers of an analysis that a figure draws, or raise NothingToDraw with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.findings import norms_come_first
from tokenlens.figures.base import NothingToDraw, model_title
from tokenlens.metrics import metrics

NORMS = {"norm1": "norm1 ({} attention)", "norm2": "norm2 ({} MLP)", "final_norm": "final"}
"""Titles of the panels of each norm, with a placeholder for the norm's position ("before" or "after")."""

OF_WEIGHTS = ("weight_distance",)
"""Metrics computed from the weights alone, without images."""

NUMBERS = ("value", "sd", "n", "ci_low", "ci_high", "unit")
"""The last columns of a frame."""

BEFORE_AFTER = ("model", "metric", "group", "norm", "norm_position", "state", "block", "site", *NUMBERS)
"""Columns of a frame for ``draw_before_after``."""


def norm_position(analysis: Analysis) -> str:
    """Return "before" if the norms precede attention and MLP, and "after" for post-norm blocks."""
    return "before" if norms_come_first(analysis) else "after"


def norm_title(frame: pd.DataFrame) -> Callable[[str], str]:
    """Return the function that titles the panel of a norm, from a frame with the column ``norm_position``."""
    return lambda norm: NORMS[norm].format(frame["norm_position"].iloc[0])


def as_list(names: str | Iterable[str]) -> list[str]:
    """Return a list of names; a single name becomes a list of one.

    >>> as_list("norm1"), as_list(("norm1", "norm2"))
    (['norm1'], ['norm1', 'norm2'])
    """
    return [names] if isinstance(names, str) else list(names)


def missing(analysis: Analysis, metric: str) -> NothingToDraw:
    """Return the error that says why a metric has no numbers; raise LookupError if there is no such metric."""
    reason = analysis.not_applicable.get(metric)
    if reason:
        return NothingToDraw(f"{metric} does not apply to {analysis.model}: {reason}")
    metrics.get(metric)
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
    """Return the rows of one metric, with the model's title instead of its name.

    Each of ``parts``, ``sites`` and ``groups`` is one name, a list of names, or None for all.

    Raises:
        NothingToDraw: if there are none; the message lists what is there.
    """
    rows = analysis.table[analysis.table["metric"] == metric]
    if rows.empty:
        raise missing(analysis, metric)
    found = choose_rows(rows, f"{metric} of {analysis.model}", parts=parts, sites=sites, groups=groups)
    return separate_elements(found, metric).assign(model=model_title(analysis)).reset_index(drop=True)


def rows_of_norms(
    analysis: Analysis,
    metric: str,
    *,
    parts: str | Sequence[str] | None = None,
    norms: str | Sequence[str] | None = None,
    groups: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return ``rows_of`` with ``norm`` and ``norm_position``; the final norm is numbered after the last block."""
    rows = rows_of(analysis, metric, parts=parts, sites=norms, groups=groups)
    rows["norm"], rows["norm_position"] = rows["site"], norm_position(analysis)
    rows.loc[rows["norm"] == "final_norm", "block"] = analysis.blocks
    return rows


def choose_rows(
    rows: pd.DataFrame,
    subject: str,
    *,
    parts: str | Sequence[str] | None,
    sites: str | Sequence[str] | None,
    groups: str | Sequence[str] | None,
) -> pd.DataFrame:
    """Return the rows with one of the chosen parts, sites and groups.

    Raises:
        NothingToDraw: if there are none; the message names the ``subject``.
    """
    for column, wanted in (("part", parts), ("site", sites), ("group", groups)):
        if wanted is None or rows.empty:
            continue
        chosen = rows[rows[column].isin(as_list(wanted))]
        if chosen.empty:
            have = ", ".join(repr(str(value)) for value in rows[column].unique())
            absent = ", ".join(map(repr, as_list(wanted)))
            raise NothingToDraw(f"{subject} has no {column} {absent}. It has: {have}.")
        rows = chosen
    return rows


def with_bands(rows: pd.DataFrame, keys: Sequence[str], *further: str) -> pd.DataFrame:
    """Return one row per block with the column ``band``, which says what ``ci_low`` and ``ci_high`` are.

    They are an "interval" or, for a metric per head, "heads": the value is the mean over heads, and the bounds are the
    lowest and the highest head.

    Args:
        rows: numbers with a block.
        keys: columns that identify a row, apart from the head.
        *further: columns to keep at the end.
    """
    heads = rows["head"].notna().any()
    if heads:
        bounds = {
            "value": ("value", "mean"),
            "ci_low": ("value", "min"),
            "ci_high": ("value", "max"),
            "n": ("n", "max"),
        }
        firsts = {name: (name, "first") for name in ("unit", *further)}
        rows = rows.groupby(list(keys), sort=False, as_index=False).agg(**bounds, **firsts)
    return rows.assign(band="heads" if heads else "interval")


def separate_elements(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Move ``n`` to the column ``elements`` if the metric is one of the weights, whose ``n`` does not count images."""
    return rows.assign(elements=rows["n"], n=np.nan) if metric in OF_WEIGHTS else rows


def array_of(analysis: Analysis, metric: str, part: str) -> NDArray[np.float64]:
    """Return one of a metric's arrays in float64; raise NothingToDraw if the analysis does not have it."""
    key = f"{metric}/{part}"
    if not (analysis.table["metric"] == metric).any():
        raise missing(analysis, metric)
    if key not in analysis.arrays:
        have = ", ".join(sorted(name for name in analysis.arrays if name.startswith(f"{metric}/"))) or "none"
        raise NothingToDraw(f"{analysis.model} has no array {key}. It has: {have}.")
    return np.asarray(analysis.arrays[key].values, dtype=np.float64)


def count_of(analysis: Analysis, metric: str) -> int:
    """Return the number of images that a metric was computed on."""
    counts = analysis.table.loc[analysis.table["metric"] == metric, "n"]
    return int(counts.max()) if len(counts) else 0


def before_after(analysis: Analysis, metrics: Sequence[str], norms: str | Sequence[str] | None = None) -> pd.DataFrame:
    """Return metrics at the input and the output of each norm, in the columns for ``draw_before_after``.

    The input of norm1 is ``resid_pre``, that of norm2 ``resid_mid``, and that of the final norm the last block's
    ``resid_post``. The final norm gets the block number ``analysis.blocks``. In post-norm blocks the input of a norm is
    not a site and is left out.

    Args:
        metrics: names of metrics of token sites.
        norms: any of ``norm1``, ``norm2`` and ``final_norm``; by default all that the model has.

    Raises:
        NothingToDraw: if there are no such numbers.
    """
    frames = []
    position = norm_position(analysis)
    for metric in metrics:
        rows = rows_of(analysis, metric)
        last = (rows["block"] == analysis.blocks - 1).fillna(False)
        for norm, before, after in (
            ("norm1", rows["site"] == "resid_pre", rows["site"] == "norm1"),
            ("norm2", rows["site"] == "resid_mid", rows["site"] == "norm2"),
            ("final_norm", (rows["site"] == "resid_post") & last, rows["site"] == "final_norm"),
        ):
            if not after.any() or (norms is not None and norm not in as_list(norms)):
                continue
            for state, chosen in (("before", before), ("after", after)):
                if state == "before" and position == "after" and norm != "final_norm":
                    continue
                part = rows[chosen].copy()
                part["norm"], part["norm_position"], part["state"] = norm, position, state
                if norm == "final_norm":
                    part["block"] = analysis.blocks
                frames.append(part)
    found = pd.concat(frames) if frames else pd.DataFrame()
    if found.empty:
        raise NothingToDraw(f"{', '.join(metrics)} of {analysis.model} has no value at a norm.")
    return found[list(BEFORE_AFTER)].reset_index(drop=True)
