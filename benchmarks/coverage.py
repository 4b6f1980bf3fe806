"""Measure how often the 95 % intervals of the table cover, by drawing sets of images from real per-image values.

    python benchmarks/coverage.py collect --photos FOLDER --checkpoint FILE --cache FILE   # one analysis, minutes
    python benchmarks/coverage.py measure --cache FILE [FILE]                              #
    benchmarks/results/coverage.md

The photographs are the population: sets of n are drawn from them with replacement, so that n = 200 of 500 is not
flattered, and the number of the population is what an interval has to cover. Numbers of the whole set are computed by
the metrics themselves, from the terms that each image contributes.
"""

# Shapes: N images of the population, n images of a set, S numbers.

from __future__ import annotations

import argparse
import copy
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import scipy.stats
import torch

from tokenlens.analysis import analyze
from tokenlens.metrics import RANGES, JackknifeMetric, metrics
from tokenlens.metrics.cka import cka_with_interval, gram
from tokenlens.reduction.summaries import BatchSummary
from tokenlens.statistics.jackknife import JACKKNIFE_GROUPS
from tokenlens.statistics.moments import Moments

RESULTS = Path(__file__).parent / "results" / "coverage.md"
SIZES = (8, 16, 64, 200)
DRAWS, SET_DRAWS = 1000, 200
LEAST = 0.90
EVERY = 3
"""Numbers of the whole set are measured at one of so many sites, which saves time."""
BOOTSTRAP_EVERY = 20
"""The bootstrap is measured for one of so many numbers per image."""
METHODS = ("Student's t", "Hall's", "Hall's with allowance")

KEY = ("metric", "part", "block", "site", "group", "head")


def collect(photos: Path, checkpoint: Path, limit: int | None) -> dict[str, Any]:
    """Analyze the photographs once; return the values per image, and the terms of the numbers of the whole set."""
    terms: dict[tuple[str, int, str], list[np.ndarray]] = {}
    states: dict[str, JackknifeMetric] = {}
    update = JackknifeMetric.update

    def keep(metric: JackknifeMetric, batch: BatchSummary) -> None:
        update(metric, batch)
        states[metric.name] = metric
        for index, stack in enumerate(batch.stacks(metric.summary_kind, metric.chosen_sites)):
            for name, term in metric.terms(stack.summary).items():
                terms.setdefault((metric.name, index, name), []).append(term.transpose(0, 1).float().numpy().copy())

    with patch.object(JackknifeMetric, "update", keep):
        analysis = analyze("vit_small_patch14_dinov2", photos, checkpoint=checkpoint, img_size=224, limit=limit)
    return {
        "checkpoint": checkpoint.stem,
        "per_image": analysis.per_image,
        "terms": {key: np.concatenate(parts) for key, parts in terms.items()},
        "metrics": states,
    }


def of_images(
    found: dict[str, Any], n: int, random: np.random.RandomState
) -> tuple[list[tuple[Any, ...]], dict[str, np.ndarray]]:
    """Return the share of sets of n whose interval covers the population's mean, for each number and method."""
    frame = found["per_image"]
    values, keys = frame.to_numpy(np.float64), list(frame.columns)
    units = [metrics.get(metric)().unit_of(part) for metric, part, *_ in keys]
    ranges = np.array([RANGES.get(unit, 0.0) for unit in units])
    without = [
        part in metrics.get(metric).no_interval or n < metrics.get(metric).fewest_images for metric, part, *_ in keys
    ]
    truth = values.mean(0)
    hits = {method: np.zeros(values.shape[1]) for method in METHODS}
    for _ in range(DRAWS):
        moments = Moments()
        moments.update(values[random.randint(0, len(values), n)])
        reach = scipy.stats.t.ppf(0.975, n - 1) * moments.sd / np.sqrt(n)
        hits["Student's t"] += covers(moments.mean - reach, moments.mean + reach, truth)
        hits["Hall's"] += covers(*moments.interval(), truth)
        hits["Hall's with allowance"] += covers(*moments.interval(ranges=ranges), truth)
    return keys, {method: np.where(without, np.nan, share / DRAWS) for method, share in hits.items()}


def of_bootstrap(found: dict[str, Any], n: int, random: np.random.RandomState) -> tuple[float, int, int]:
    """Return the lowest coverage of the BCa bootstrap over some numbers per image, how many are low, and the count."""
    values = found["per_image"].to_numpy(np.float64)[:, ::BOOTSTRAP_EVERY]
    hits = np.zeros(values.shape[1])
    for _ in range(SET_DRAWS):
        drawn = values[random.randint(0, len(values), n)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no spread: no interval
            low, high = scipy.stats.bootstrap(
                (drawn,),
                np.mean,
                axis=0,
                n_resamples=999,
                method="BCa",
                rng=np.random.default_rng(random.randint(2**31)),
            ).confidence_interval
        hits += covers(np.nan_to_num(low, nan=drawn.mean(0)), np.nan_to_num(high, nan=drawn.mean(0)), values.mean(0))
    shares = hits / SET_DRAWS
    return float(shares.min()), int((shares < LEAST).sum()), len(shares)


def covers(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return whether the intervals hold the truth, up to rounding; NaN where there is no interval."""
    rounding = 1e-5 * np.abs(truth) + 1e-6  # as exact as the metrics are
    inside = (low - rounding <= truth) & (truth <= high + rounding)
    return np.where(np.isnan(low) | np.isnan(high), np.nan, inside)


def of_sets(found: dict[str, Any], n: int, random: np.random.RandomState) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Yield the coverage of each number of the whole set; NaN where there is no interval."""
    for name, state in found["metrics"].items():
        terms = {(index, term): x[:, ::EVERY] for (metric, index, term), x in found["terms"].items() if metric == name}
        state = at_some_sites(state)
        count = len(next(iter(terms.values())))
        # The population: every image very often, so that no pair is of one image with itself.
        truth = numbers(state, terms, np.full((1, count), 1e6))
        hits = []
        for _ in range(SET_DRAWS):
            drawn = np.zeros((JACKKNIFE_GROUPS, count))
            np.add.at(drawn, (np.arange(n) % JACKKNIFE_GROUPS, random.randint(0, count, n)), 1)
            rows = numbers(state, terms, drawn)
            hits.append(covers(rows["ci_low"].to_numpy(), rows["ci_high"].to_numpy(), truth["value"].to_numpy()))
        shares = np.mean(hits, axis=0)
        yield from zip([(name, *row) for row in truth[list(KEY[1:])].itertuples(index=False)], shares, strict=True)


def at_some_sites(state: JackknifeMetric) -> JackknifeMetric:
    """Return the metric with one of ``EVERY`` sites."""
    metric = copy.copy(state)
    metric._stacks = [keys[::EVERY] for keys in state._stacks]
    metric._constants = [{name: values[::EVERY] for name, values in known.items()} for known in state._constants]
    return metric


def numbers(state: JackknifeMetric, terms: dict[tuple[int, str], np.ndarray], drawn_GN: np.ndarray) -> pd.DataFrame:
    """Return the rows of a metric for a set of images, given how often each is in each group of the jackknife."""
    metric = copy.copy(state)
    used = np.flatnonzero(drawn_GN.any(0))
    sums = {}
    for key, x in terms.items():
        flat = x[used].reshape(len(used), -1).astype(np.float64)
        sums[key] = torch.from_numpy((drawn_GN[:, used] @ flat).reshape(len(drawn_GN), *x.shape[1:]))
    metric._sums = sums
    metric.counts_G = drawn_GN.sum(1).astype(np.int64)
    return pd.DataFrame(metric.rows())


def of_cka(found: dict[str, Any], n: int, random: np.random.RandomState) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Yield the coverage of the CKA of CLS and mean patch at each block's output."""
    [keys] = found["metrics"]["centroid_separation"]._stacks
    places = [(block, row) for row, (block, site) in enumerate(keys) if site == "resid_post"]
    terms = [found["terms"]["centroid_separation", 0, group] for group in ("cls", "patch")]
    for block, row in places[::EVERY]:
        features = np.stack([term[:, row].astype(np.float64) for term in terms])
        centred = features - features.mean(1, keepdims=True)
        one, two = centred
        own = [np.linalg.norm(x.T @ x) for x in centred]
        truth = np.array(np.linalg.norm(one.T @ two) ** 2 / np.prod(own))
        hits = []
        for _ in range(SET_DRAWS):
            drawn = random.randint(0, features.shape[1], n)
            _, low, high = cka_with_interval(gram(features[:, drawn]), np.arange(n))
            hits.append(covers(low[0, 1], high[0, 1], truth))
        yield ("cka", "", block, "resid_post", "cls-patch", None), float(np.mean(hits))


def measure(cache: Path, sets: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the coverage of every number at each size, and the lowest one and how many are low for each method."""
    found = pickle.loads(cache.read_bytes())
    columns, methods = {}, {}
    for n in SIZES:
        random = np.random.RandomState(n)
        keys, by_method = of_images(found, n, random)
        whole = [*of_sets(found, n, random), *of_cka(found, n, random)] if sets else []
        index = pd.MultiIndex.from_tuples([describe(key) for key in [*keys, *(key for key, _ in whole)]])
        columns[n] = pd.Series([*by_method[METHODS[-1]], *(share for _, share in whole)], index=index)
        methods[n] = {
            method: (np.nanmin(share), int((share < LEAST).sum()), int(np.isfinite(share).sum()))
            for method, share in by_method.items()
        } | {"BCa bootstrap": of_bootstrap(found, n, random)}
        print(cache.stem, n, columns[n].min(), methods[n], flush=True)
    return pd.DataFrame(columns), pd.DataFrame(methods)


def write_page(measured: pd.DataFrame, methods: pd.DataFrame, checked: pd.DataFrame | None) -> None:
    """Write the table of the lowest coverage by metric, the worst rows, and the methods that were tried."""
    lines = [
        "# Coverage of the 95 % intervals",
        "",
        "Share of sets of n images whose interval holds the number of the population "
        "(`python benchmarks/coverage.py measure`). Population: 500 photographs, DINOv2 ViT-S/14 at 224 px; sets are "
        f"drawn with replacement, {DRAWS:,} for numbers per image and {SET_DRAWS} for numbers of the whole set (those "
        f"at one of {EVERY} sites). A share from {DRAWS:,} sets has a standard error of .007 to .010, one from "
        f"{SET_DRAWS} of .02. The lowest of all rows of a metric, and the median in parentheses; – where "
        "no interval is printed.",
        "",
        "| metric | rows | " + " | ".join(f"n = {n}" for n in SIZES) + " |",
        "|---|---|" + "---|" * len(SIZES),
    ]
    metric = [name for name, _ in measured.index]
    for name, rows in measured.groupby(metric):
        cells = [
            "–" if rows[n].isna().all() else f"{written(rows[n].min())} ({written(rows[n].median())})" for n in SIZES
        ]
        lines.append(f"| `{name}` | {len(rows)} | " + " | ".join(cells) + " |")
    lines += ["", "The worst rows:", "", "| number | n | coverage |", "|---|---|---|"]
    worst = measured.stack().sort_values().head(12)
    lines += [f"| `{name}` {place} | {n} | {written(share)} |" for (name, place, n), share in worst.items()]
    lines += [
        "",
        "The methods that were tried, for numbers per image: lowest coverage, and in parentheses how many of the "
        f"numbers are below {written(LEAST)}. The bootstrap has {SET_DRAWS} sets and one of {BOOTSTRAP_EVERY} numbers.",
        "",
        "| method | " + " | ".join(f"n = {n}" for n in SIZES) + " |",
        "|---|" + "---|" * len(SIZES),
    ]
    for method, cells in methods.iterrows():
        shown = [f"{written(low)} ({few} of {total:,})" for low, few, total in cells]
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    if checked is not None:
        lowest = ", ".join(f"{written(checked[n].min())} at n = {n}" for n in SIZES)
        lines += [
            "",
            "The allowance for images of a kind not seen was set on these numbers. On a model that it was not set on "
            f"(a saliency fine-tuning, numbers per image) the lowest coverage is {lowest}; "
            f"{int((checked < LEAST).sum().sum())} of {int(checked.notna().sum().sum()):,} are below {written(LEAST)}.",
        ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def written(share: float) -> str:
    """Format a share as .95."""
    return f"{share:.2f}".lstrip("0")


def describe(key: tuple[Any, ...]) -> tuple[str, str]:
    """Return the metric with its part, and the place of a number."""
    metric, part, block, site, group, head = key
    places = [f"block {int(block)}" if block is not None and block >= 0 else "", site, group]
    places += [f"head {head}" if head is not None and head >= 0 else ""]
    return f"{metric} {part}".strip(), " ".join(filter(None, places))


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["collect", "measure"])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--cache", type=Path, required=True, nargs="+")
    options = parser.parse_args()
    if options.command == "collect":
        found = collect(options.photos, options.checkpoint, options.limit)
        options.cache[0].write_bytes(pickle.dumps(found))
        return
    first, *others = options.cache
    write_page(*measure(first, sets=True), measure(others[0], sets=False)[0] if others else None)


if __name__ == "__main__":
    main()
