"""An analysis' numbers as arrays, averaged over heads, and one model's set against another's."""
# Shapes: N images, S series (a number at one place), C series with a value per image, G groups of columns.

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tokenlens.analysis.analysis import Analysis
from tokenlens.comparison.pairing import Match
from tokenlens.statistics.differences import Differences, of_intervals, paired, unpaired
from tokenlens.statistics.moments import Moments

Array = NDArray[np.float64]
Positions = NDArray[np.int64]

PLACE = ("metric", "part", "block", "site", "group")
"""What names a series; heads of two models have no common identity, so numbers per head are averaged first."""


@dataclass(frozen=True)
class Series:
    """S numbers of one model and, of C of them, the values image by image.

    Attributes:
        keys: an index of the columns of ``PLACE``; block −1 where there is none.
        value, sd, ci_half, n, unit: (S,) as in the table; a number per head is the mean over heads of the kept images.
        column: (S,) where in ``images_NC`` the series is, −1 if it is a number of the whole set.
        images_NC: values by image, NaN where undefined.
    """

    keys: pd.MultiIndex
    value: Array
    sd: Array
    ci_half: Array
    n: Positions
    unit: NDArray[Any]
    column: Positions
    images_NC: Array

    @classmethod
    def of(cls, analysis: Analysis) -> Series:
        """The series of an analysis, in the order of its table."""
        table = analysis.table
        rows = pd.MultiIndex.from_frame(table[list(PLACE)].fillna({"block": -1}).astype({"block": np.int64}))
        codes, keys = _factorized(rows)
        heads = np.bincount(codes, minlength=len(keys))
        first = np.unique(codes, return_index=True)[1]
        with np.errstate(invalid="ignore"):
            value = np.bincount(codes, weights=table["value"], minlength=len(keys)) / np.maximum(heads, 1)
        numbers = {name: table[name].to_numpy()[first] for name in ("sd", "ci_low", "ci_high", "n", "unit")}
        sd, half = numbers["sd"].copy(), (numbers["ci_high"] - numbers["ci_low"]) / 2
        sd[heads > 1], half[heads > 1] = np.nan, np.nan
        n = numbers["n"].copy()
        column = np.full(len(keys), -1)
        images = np.zeros((len(analysis.per_image), 0))
        if analysis.per_image.shape[1]:
            place = keys.get_indexer(analysis.per_image.columns.droplevel("head"))
            images, of_column = averaged(analysis.per_image.to_numpy(dtype=np.float64), place)
            column[of_column] = np.arange(len(of_column))
            several = (heads > 1) & (column >= 0)
            value[several], sd[several], n[several] = _moments(images[:, column[several]])
        return cls(keys, value, sd, half, n, numbers["unit"], column, images)

    @cached_property
    def over_blocks(self) -> Series:
        """Means over blocks, taken image by image; ``keys`` without block. Numbers of the whole set are left out."""
        chosen = np.flatnonzero(self.column >= 0)
        codes, keys = _factorized(self.keys[chosen].droplevel("block"))
        images, order = averaged(self.images_NC[:, self.column[chosen]], codes)
        assert (order == np.arange(len(keys))).all()
        value, sd, n = _moments(images)
        unit = self.unit[chosen][np.unique(codes, return_index=True)[1]]
        return Series(keys, value, sd, np.full(len(keys), np.nan), n, unit, np.arange(len(keys)), images)


def averaged(values_NC: Array, codes: Positions) -> tuple[Array, Positions]:
    """Mean over the columns of equal code, (N, G), and the G codes, ascending; NaN where one of them is NaN."""
    order = np.argsort(codes, kind="stable")
    present, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
    if not len(present):
        return np.zeros((len(values_NC), 0)), present
    return np.add.reduceat(values_NC[:, order], starts, axis=1) / counts, present


def nearest_blocks(blocks: int, baseline_blocks: int) -> Positions:
    """For each block of one model the block of the baseline nearest in relative depth, (block + 0.5)/blocks.

    Of two that are equally near the later one is taken, so that the last block meets the last.

    >>> nearest_blocks(6, 12), nearest_blocks(12, 6)
    (array([ 1,  3,  5,  7,  9, 11]), array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]))
    """
    one = (2 * np.arange(blocks) + 1)[:, None] * baseline_blocks
    two = (2 * np.arange(baseline_blocks) + 1)[None] * blocks
    return baseline_blocks - 1 - np.abs(one - two)[:, ::-1].argmin(axis=1)


def differences_of(series: Series, baseline: Series, match: Match, matched_block: Positions | None) -> pd.DataFrame:
    """All numbers that both have, with their differences, a row each.

    Args:
        series, baseline: of the two models.
        match: which images pair.
        matched_block: for each block of the model the baseline's block; None for series without blocks.

    Returns:
        A frame with the columns of the key, ``baseline_block`` (if there are blocks), those of ``Differences``,
        ``test`` and ``unit``.
    """
    keys = series.keys.to_frame(index=False)
    wanted = series.keys
    if matched_block is not None:
        block = keys["block"].to_numpy()
        keys["baseline_block"] = np.where(block >= 0, matched_block[block], -1)
        wanted = pd.MultiIndex.from_frame(keys.assign(block=keys["baseline_block"])[list(PLACE)])
    position = baseline.keys.get_indexer(wanted)
    here = np.flatnonzero(position >= 0)
    found, test = _tested(series, here, baseline, position[here], match)
    numbers = {each.name: getattr(found, each.name) for each in fields(Differences)}
    return keys.iloc[here].reset_index(drop=True).assign(**numbers, test=test, unit=series.unit[here])


def _tested(
    series: Series, here: Positions, baseline: Series, there: Positions, match: Match
) -> tuple[Differences, NDArray[Any]]:
    """Each number by the test that its kind allows; the test's name is empty where none is possible."""
    by_image = (series.column[here] >= 0) & (baseline.column[there] >= 0)
    spread = by_image | (np.isfinite(series.sd[here]) & np.isfinite(baseline.sd[there]))
    kinds = {
        "paired t": by_image & match.pairing.paired,
        "Welch": spread & ~(by_image & match.pairing.paired),
        "intervals": ~spread,
    }
    parts, places, names = [], [], []
    for name, chosen in kinds.items():
        one, two = here[chosen], there[chosen]
        if name == "paired t":
            images_NS = series.images_NC[match.rows][:, series.column[one]]
            part = paired(images_NS, baseline.images_NC[match.baseline_rows][:, baseline.column[two]])
        elif name == "Welch":
            sides = [(s.value[at], s.sd[at], s.n[at]) for s, at in ((series, one), (baseline, two))]
            part = unpaired(*sides[0], *sides[1])
        else:
            sides = [(s.value[at], s.ci_half[at], s.n[at]) for s, at in ((series, one), (baseline, two))]
            part = of_intervals(*sides[0], *sides[1])
        parts.append(part)
        places.append(np.flatnonzero(chosen))
        names.append(np.where(np.isfinite(part.p), name, ""))
    order = np.argsort(np.concatenate(places))
    whole = {each.name: np.concatenate([getattr(p, each.name) for p in parts])[order] for each in fields(Differences)}
    return Differences(**whole), np.concatenate(names)[order]


def _moments(values_NS: Array) -> tuple[Array, Array, Positions]:
    moments = Moments()
    moments.update(values_NS)
    return np.where(moments.n > 0, moments.mean, np.nan), moments.sd, moments.n


def _factorized(index: pd.MultiIndex) -> tuple[Positions, pd.MultiIndex]:
    """For each entry its position among the distinct ones, and those, in the order in which they come first."""
    codes, keys = index.factorize()
    return codes, keys.set_names(index.names)  # pandas forgets the names
