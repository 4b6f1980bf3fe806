"""The numbers of an analysis as arrays, averaged over heads, and their differences from a baseline."""
# Shapes: N images, S numbers of a model, C numbers that have a value per image, G groups of columns.

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tokenlens.analysis.analysis import Analysis
from tokenlens.comparison.pairing import Match
from tokenlens.statistics.differences import Differences, compare_intervals, compare_paired, compare_unpaired
from tokenlens.statistics.moments import Moments

Array = NDArray[np.float64]
Positions = NDArray[np.int64]

KEY = ("metric", "part", "block", "site", "group")
"""The columns that identify a number. Heads of two models do not correspond, so numbers are averaged over heads."""


@dataclass(frozen=True)
class ModelNumbers:
    """S numbers of one model, C of them with a value per image.

    Attributes:
        keys: an index with the levels of ``KEY``; block −1 for none.
        value, sd, ci_half, n, unit: (S,) as in the table; numbers per head are means over heads, over the kept images.
        column: (S,) the column of each number in ``images_NC``, −1 for a number of the whole set of images.
        images_NC: values per image, NaN where undefined.
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
    def of(cls, analysis: Analysis) -> ModelNumbers:
        """Return the numbers of an analysis, in the order of its table."""
        table = analysis.table
        rows = pd.MultiIndex.from_frame(table[list(KEY)].fillna({"block": -1}).astype({"block": np.int64}))
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
            position = keys.get_indexer(analysis.per_image.columns.droplevel("head"))
            images, of_column = average_columns(analysis.per_image.to_numpy(dtype=np.float64), position)
            column[of_column] = np.arange(len(of_column))
            several = (heads > 1) & (column >= 0)
            value[several], sd[several], n[several] = _moments(images[:, column[several]])
        return cls(keys, value, sd, half, n, numbers["unit"], column, images)

    @cached_property
    def over_blocks(self) -> ModelNumbers:
        """Means over blocks, taken image by image, without numbers of the whole set; ``keys`` have no block."""
        chosen = np.flatnonzero(self.column >= 0)
        codes, keys = _factorized(self.keys[chosen].droplevel("block"))
        images, order = average_columns(self.images_NC[:, self.column[chosen]], codes)
        assert (order == np.arange(len(keys))).all()
        value, sd, n = _moments(images)
        unit = self.unit[chosen][np.unique(codes, return_index=True)[1]]
        return ModelNumbers(keys, value, sd, np.full(len(keys), np.nan), n, unit, np.arange(len(keys)), images)


def average_columns(values_NC: Array, codes: Positions) -> tuple[Array, Positions]:
    """Average the columns that share a code, (N, G), and return the G codes, ascending; NaN where any column is NaN."""
    order = np.argsort(codes, kind="stable")
    present, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
    if not len(present):
        return np.zeros((len(values_NC), 0)), present
    return np.add.reduceat(values_NC[:, order], starts, axis=1) / counts, present


def nearest_blocks(blocks: int, baseline_blocks: int) -> Positions:
    """Return for each block of a model the baseline's block nearest in relative depth, (block + 0.5)/blocks.

    If two are equally near, the later one is taken, so that the last blocks always correspond.

    >>> nearest_blocks(6, 12), nearest_blocks(12, 6)
    (array([ 1,  3,  5,  7,  9, 11]), array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]))
    """
    one = (2 * np.arange(blocks) + 1)[:, None] * baseline_blocks
    two = (2 * np.arange(baseline_blocks) + 1)[None] * blocks
    return baseline_blocks - 1 - np.abs(one - two)[:, ::-1].argmin(axis=1)


def compare_numbers(
    numbers: ModelNumbers, baseline: ModelNumbers, match: Match, matched_block: Positions | None
) -> pd.DataFrame:
    """Compute the differences of all numbers that both models have, one row each.

    Args:
        numbers, baseline: the numbers of the two models.
        match: the images that pair.
        matched_block: the baseline's block for each block of the model; None for numbers without blocks.

    Returns:
        A frame with the columns of ``KEY``, ``baseline_block`` (if there are blocks), those of ``Differences``,
        ``test`` and ``unit``.
    """
    keys = numbers.keys.to_frame(index=False)
    wanted = numbers.keys
    if matched_block is not None:
        block = keys["block"].to_numpy()
        keys["baseline_block"] = np.where(block >= 0, matched_block[block], -1)
        wanted = pd.MultiIndex.from_frame(keys.assign(block=keys["baseline_block"])[list(KEY)])
    position = baseline.keys.get_indexer(wanted)
    here = np.flatnonzero(position >= 0)
    found, test = _tested(numbers, here, baseline, position[here], match)
    columns = {each.name: getattr(found, each.name) for each in fields(Differences)}
    return keys.iloc[here].reset_index(drop=True).assign(**columns, test=test, unit=numbers.unit[here])


def _tested(
    numbers: ModelNumbers, here: Positions, baseline: ModelNumbers, there: Positions, match: Match
) -> tuple[Differences, NDArray[Any]]:
    """Apply to each number the test that its kind allows; the name of the test is empty where none is possible."""
    by_image = (numbers.column[here] >= 0) & (baseline.column[there] >= 0)
    spread = by_image | (np.isfinite(numbers.sd[here]) & np.isfinite(baseline.sd[there]))
    kinds = {
        "paired t": by_image & match.pairing.paired,
        "Welch": spread & ~(by_image & match.pairing.paired),
        "intervals": ~spread,
    }
    parts, positions, names = [], [], []
    for name, chosen in kinds.items():
        one, two = here[chosen], there[chosen]
        if name == "paired t":
            images_NS = numbers.images_NC[match.rows][:, numbers.column[one]]
            part = compare_paired(images_NS, baseline.images_NC[match.baseline_rows][:, baseline.column[two]])
        else:
            compare, spread_of = (compare_unpaired, "sd") if name == "Welch" else (compare_intervals, "ci_half")
            sides = [(s.value[i], getattr(s, spread_of)[i], s.n[i]) for s, i in ((numbers, one), (baseline, two))]
            part = compare(*sides[0], *sides[1])
        parts.append(part)
        positions.append(np.flatnonzero(chosen))
        names.append(np.where(np.isfinite(part.p), name, ""))
    order = np.argsort(np.concatenate(positions))
    whole = {each.name: np.concatenate([getattr(p, each.name) for p in parts])[order] for each in fields(Differences)}
    return Differences(**whole), np.concatenate(names)[order]


def _moments(values_NS: Array) -> tuple[Array, Array, Positions]:
    moments = Moments()
    moments.update(values_NS)
    return np.where(moments.n > 0, moments.mean, np.nan), moments.sd, moments.n


def _factorized(index: pd.MultiIndex) -> tuple[Positions, pd.MultiIndex]:
    """Return for each entry its position among the distinct entries, and those, in order of appearance."""
    codes, keys = index.factorize()
    return codes, keys.set_names(index.names)  # pandas forgets the names
