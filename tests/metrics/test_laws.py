"""Laws of all metrics of the catalogue; a new metric is covered as soon as it has its reference."""

# Shapes: N images.

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

import tokenlens
from tests.metrics._cases import CASES, IMAGES, images, model, precise, stored, stored_precisely
from tests.metrics._stored import Stored
from tokenlens.analysis.analysis import COLUMNS, KEY_COLUMNS, Analysis
from tokenlens.analysis.analyze import choose_metrics
from tokenlens.analysis.run import AnalysisRun
from tokenlens.images import iterate_batches, open_images
from tokenlens.metrics import metrics as catalog
from tokenlens.models.loading import load_model
from tokenlens.recording.recorder import evaluating

KEY = list(KEY_COLUMNS)
WHOLE, UNEVEN = ((0, 1, 2, 3, 4, 5, 6, 7),), ((0,), (1, 2, 3, 4), (5, 6, 7))

# Float32 activations: a number that is a small difference of larger ones keeps the absolute part only.
RELATIVE, ABSOLUTE = 1e-5, 1e-6


def reference_module(metric: str) -> ModuleType:
    path = Path(__file__).parent / f"{metric}.py"
    if not path.exists():
        pytest.fail(
            f"the metric {metric!r} has no reference: add tests/metrics/{metric}.py with LEVEL and a function "
            f"reference_{metric}(stored) that computes it in float64 NumPy from its definition"
        )
    return importlib.import_module(f"tests.metrics.{metric}")


def applies(metric: str, name: str) -> bool:
    """Whether a metric should apply to a case, by the ``NEEDS`` of its reference."""
    known = (Path(__file__).parent / f"{metric}.py").exists()
    return not known or set(getattr(reference_module(metric), "NEEDS", ())) <= CASES[name].has


METRICS = catalog.names()
every_metric_and_case = pytest.mark.parametrize(
    ("metric", "name"), [(metric, name) for metric in METRICS for name in CASES if applies(metric, name)]
)


def in_batches(name: str, split: Sequence[Sequence[int]]) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images(name)), batch_sampler=[list(batch) for batch in split])


@cache
def analysis(name: str, split: tuple[tuple[int, ...], ...] = WHOLE, pool_images: int = 1) -> Analysis:
    # Update the metrics after each batch, not once for all of these few images.
    with patch("tokenlens.analysis.run.POOL_IMAGES", pool_images):
        return tokenlens.analyze(model(name), in_batches(name, split), metrics="all")


@cache
def precise_analysis(name: str) -> Analysis:
    return tokenlens.analyze(precise(name), images(name), metrics="all")


def run_over(name: str, indices: range) -> AnalysisRun:
    """Return the metrics after some of the images, as one of two processes has them."""
    run = AnalysisRun(load_model(model(name)), choose_metrics(METRICS), keep_images=IMAGES, expensive=True)
    with evaluating(model(name)):
        batches = list(iterate_batches(open_images(images(name)[indices.start : indices.stop]), 3))
        for batch in batches:
            batch.indices[:] = [index + indices.start for index in batch.indices]
        run.process(batches, amp=False)
    return run


@cache
def merged(name: str) -> Analysis:
    """Merge the first half of the images into the second."""
    run, other = run_over(name, range(5, 8)), run_over(name, range(5))
    for metric, same in zip(run.applicable, other.applicable, strict=True):
        metric.merge(same)
    whole = analysis(name)
    return run.to_analysis(whole.model, whole.provenance, list(whole.per_image.index))


def select_metric_rows(result: Analysis, metric: str) -> pd.DataFrame:
    """Return a metric's rows by part, block, site, group and head; −1 for no block or head."""
    rows = result.select(metric).fillna({"block": -1, "head": -1})
    return rows.astype({"block": int, "head": int}).set_index(KEY[1:]).sort_index()


def close(got: Any, expected: Any, relative: float = RELATIVE, absolute: float = ABSOLUTE) -> None:
    np.testing.assert_allclose(np.asarray(got, float), np.asarray(expected, float), rtol=relative, atol=absolute)


def without(image: int, name: str) -> Stored:
    return stored(name).take([index for index in range(IMAGES) if index != image])


@cache
def reference(metric: str, name: str, left_out: int | None = None, in_float64: bool = False) -> dict[Any, Any]:
    data = stored_precisely(name) if in_float64 else stored(name) if left_out is None else without(left_out, name)
    function = getattr(reference_module(metric), f"reference_{metric}")
    return {
        (part, -1 if block is None else block, site, group, -1 if head is None else head): value
        for (part, block, site, group, head), value in function(data).items()
    }


def jackknife(value: np.ndarray, left_out: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the textbook interval from the pseudo-values of leaving out one image at a time."""
    n = len(left_out)
    pseudo = n * value - (n - 1) * np.stack(left_out)
    half = stats.t.ppf(0.975, n - 1) * pseudo.std(axis=0, ddof=1) / np.sqrt(n)
    return value - half, value + half


def skewed_interval(values: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute Student's interval, and Hall's where that is longer, with the allowance for bounded numbers.

    Shares of images get Wilson's interval, from SciPy.
    """
    n = values.shape[1]
    mean, sd = values.mean(1), values.std(1, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        skew = np.nan_to_num(
            ((values - mean[:, None]) ** 3).sum(1) * n / ((n - 1) * (n - 2) * sd**3), posinf=0, neginf=0
        )
    unseen = 0.08 / n * np.array([{"cosine": 2, "share": 1, "entropy / log P": 1}.get(unit, 0) for unit in units])
    quantile = stats.t.ppf(0.975, n - 1) / np.sqrt(n)
    reach = {}
    for sign in (-1, 1):
        safe = np.where(np.abs(skew) < 1e-4, 1, skew)
        hall = 3 / safe * (np.cbrt(1 + safe * (sign * quantile - safe / 6 / n)) - 1)
        reach[sign] = np.maximum(quantile, np.where(np.abs(skew) < 1e-4, quantile, sign * hall))
    skew = np.where(sd > 1e-6 * unseen * n / 0.08, skew, 0)  # the skewness of rounding says nothing
    down, up = (np.maximum(sd * reach[sign], unseen) + unseen * np.minimum(np.abs(skew), 3) / 2 for sign in (1, -1))
    low, high = mean - down, mean + up
    for i in np.flatnonzero(units == "share of images"):
        low[i], high[i] = stats.binomtest(round(values[i].sum()), n).proportion_ci(method="wilson")
    return low, high


@pytest.mark.parametrize("name", CASES)
def test_which_metrics_apply_and_why_not(name):
    result = analysis(name)
    assert set(result.metrics) == {metric for metric in METRICS if applies(metric, name)}
    assert set(result.not_applicable) == set(METRICS) - set(result.metrics)
    for reason in result.not_applicable.values():
        assert len(reason.split()) > 3


@every_metric_and_case
def test_agrees_with_float64_numpy(metric, name):
    expected = reference(metric, name)
    rows = select_metric_rows(analysis(name), metric)
    assert set(rows.index) == set(expected)
    level = reference_module(metric).LEVEL
    absolute = getattr(reference_module(metric), "ABSOLUTE", ABSOLUTE)
    keys = list(rows.index)
    values = np.array([expected[key] for key in keys])
    if level == "image":
        table = analysis(name).per_image[metric]
        close(np.stack([table[key] for key in keys]), values, absolute=absolute)
        n = np.sum(~np.isnan(values), axis=1)
        mean, sd = values.mean(1), values.std(1, ddof=1)
        close(rows["sd"], sd, absolute=absolute)
        low, high = skewed_interval(values, rows["unit"].to_numpy())
        without = rows.index.get_level_values("part").isin(catalog.get(metric).no_interval)
        without |= catalog.get(metric).fewest_images > IMAGES
        low[without] = high[without] = np.nan
        assert (rows["n"] == n).all()
    elif level == "set":
        mean = values
        others = [reference(metric, name, left_out=image) for image in range(IMAGES)]
        low, high = jackknife(values, [np.array([other[key] for key in keys]) for other in others])
        unseen = np.where(rows["unit"] == "cosine", 0.16 / IMAGES, 0)
        low, high = low - unseen, high + unseen
        without = rows.index.get_level_values("part").isin(catalog.get(metric).no_interval)
        low[without] = high[without] = np.nan
        assert rows["sd"].isna().all()
        assert (rows["n"] == IMAGES).all()
    elif level == "whole":
        # Shares of a small difference, and Monte Carlo in float32.
        assert rows["sd"].isna().all()
        assert (rows["n"] == IMAGES).all()
        for column, end in zip(("value", "ci_low", "ci_high"), values.T, strict=True):
            close(rows[column], end, relative=1e-3, absolute=1e-5)
        return
    else:
        mean, low, high = values, np.full(len(values), np.nan), np.full(len(values), np.nan)
    close(rows["value"], mean, absolute=absolute)
    # An interval ends where its quantity does; the estimate, which rounding may carry beyond, stays inside.
    chosen = catalog.get(metric)()
    lowest, highest = np.array([chosen.bounds_of(part) for part in rows.index.get_level_values("part")]).T
    low, high = np.maximum(low, np.minimum(lowest, mean)), np.minimum(high, np.maximum(highest, mean))
    # An interval magnifies the rounding of its values.
    close(rows["ci_low"], low, relative=20 * RELATIVE, absolute=20 * absolute)
    close(rows["ci_high"], high, relative=20 * RELATIVE, absolute=20 * absolute)


@pytest.mark.parametrize("name", ["layer", "rms", "registers", "specialized"])
@pytest.mark.parametrize("metric", METRICS)
def test_in_float64_the_definitions_are_the_same(metric, name):
    if not applies(metric, name):
        return
    rows = select_metric_rows(precise_analysis(name), metric)
    expected = reference(metric, name, in_float64=True)
    value = np.mean if reference_module(metric).LEVEL == "image" else np.ravel
    values = [value(expected[key]).flat[0] for key in rows.index]
    # Some values pass through float32, e.g. CKA's features and sampled tokens.
    sampled = rows.index.get_level_values(0).isin(["fall_share", "random_95", "rotated_95"])
    close(rows["value"][~sampled], np.array(values)[~sampled], relative=1e-9, absolute=2e-8)
    close(rows["value"][sampled], np.array(values)[sampled], relative=2e-6, absolute=1e-6)


@every_metric_and_case
def test_arrays_agree_with_float64_numpy(metric, name):
    arrays = {k.partition("/")[2]: a for k, a in analysis(name).arrays.items() if k.partition("/")[0] == metric}
    make = getattr(reference_module(metric), "reference_arrays", None)
    if make is None:
        assert not arrays, f"tests/metrics/{metric}.py needs reference_arrays(stored)"
        return
    expected = make(stored(name))
    bounds = {part + end for part in expected for end in ("_low", "_high")} & set(arrays)
    assert set(arrays) == set(expected) | bounds
    others: list[Any] = []
    for part, (dims, values) in expected.items():
        assert arrays[part].dims == dims
        assert arrays[part].unit
        close(arrays[part].values, values)
        if part + "_low" in bounds:
            others = others or [make(without(image, name)) for image in range(IMAGES)]
            low, high = jackknife(values, [other[part][1] for other in others])
            close(arrays[part + "_low"].values, low, relative=20 * RELATIVE, absolute=20 * ABSOLUTE)
            close(arrays[part + "_high"].values, high, relative=20 * RELATIVE, absolute=20 * ABSOLUTE)


def assert_same(result: Analysis, whole: Analysis, metric: str) -> None:
    one, two = select_metric_rows(result, metric), select_metric_rows(whole, metric)
    assert list(one.index) == list(two.index)
    for column in ("value", "sd", "ci_low", "ci_high"):
        close(one[column], two[column], relative=1e-6)
    assert (one["n"] == two["n"]).all()
    assert result.per_image.columns.equals(whole.per_image.columns)
    if metric in whole.per_image.columns.get_level_values(0):
        close(result.per_image[metric], whole.per_image[metric], relative=1e-6)
    for key, array in whole.arrays.items():
        if key.startswith(metric + "/"):
            close(result.arrays[key].values, array.values, relative=1e-6)


@every_metric_and_case
def test_batches_do_not_matter(metric, name):
    for pool_images in (1, 5):
        assert_same(analysis(name, UNEVEN, pool_images), analysis(name), metric)


@every_metric_and_case
def test_two_merged_halves_are_the_whole(metric, name):
    assert_same(merged(name), analysis(name), metric)


@pytest.mark.parametrize("name", CASES)
def test_the_table_is_tidy(name):
    table = analysis(name).table
    assert tuple(table.columns) == COLUMNS
    kinds = {"block": "Int64", "head": "Int64", "n": "int64"}
    for column in COLUMNS:
        if column in ("model", "metric", "part", "site", "group", "unit"):
            assert table[column].map(type).eq(str).all(), column
        else:
            assert str(table[column].dtype) == kinds.get(column, "float64")
    assert not table.duplicated(KEY).any()
    assert (table["unit"] != "").all()
    assert (table["n"] >= 0).all()
    assert not np.isinf(table[["value", "sd", "ci_low", "ci_high"]].to_numpy()).any()
    assert (table["sd"].dropna() >= 0).all()
    bounded = table.dropna(subset=["ci_low", "ci_high"])
    assert (bounded["ci_low"] <= bounded["value"]).all()
    assert (bounded["value"] <= bounded["ci_high"]).all()
    assert (table["model"] == analysis(name).model).all()


@pytest.mark.parametrize("metric", METRICS)
def test_is_described(metric):
    cls = catalog.get(metric)
    assert cls.title
    assert cls.__doc__
    assert catalog.describe(metric).endswith((".", ":")) or ":" in catalog.describe(metric)
    assert bool(cls.cost) == bool(cls.expensive_sites)


def test_a_metric_without_a_reference_fails_with_what_to_do():
    with pytest.raises(pytest.fail.Exception, match=r"add tests/metrics/no_such_metric\.py"):
        reference_module("no_such_metric")
