"""Measure how often the rules for F1 and F2 call a claim supported where it is false by construction.

    python benchmarks/rules.py        # benchmarks/results/rules.md, about five minutes on one core

F1: each number is exactly at its threshold, in all blocks the same. The blocks share one draw of the images, so that
nothing averages out over them. F2(a): tokens whose covariance and means have no special basis. F2(b): CLS has its
energy in five channels, and the fall is in channels that have nothing to do with them.
"""

# Shapes: n images, K patches, D channels.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tokenlens.analysis import Analysis, judge
from tokenlens.analysis.block_numbers import above, ratio
from tokenlens.metrics import RANGES, Metric, make_row, metrics
from tokenlens.statistics.moments import Moments
from tokenlens.tokens import TokenLayout

RESULTS = Path(__file__).parent / "results" / "rules.md"
SIZES = (8, 16, 64)
DATA_SETS, DATA_SETS_F2 = 20_000, 60
CHANNELS, PATCHES = 128, 8
BLOCKS = 3
AT_THRESHOLD = {
    "F1(a), falls by 0.05": 0.05,
    "F1(a), ends at 0.1": -0.1,
    "F1(b), ends at 0": 0.0,
    "F1(c), keeps half": 0.15,
}
"""The mean of the images; "ends at" 0.1 is judged from above, so it is turned round."""

NOISES: dict[str, Callable[..., np.ndarray]] = {
    "normal": lambda random, n: random.normal(0, 0.06, n),
    "skewed to the right": lambda random, n: 0.06 * (random.exponential(size=n) - 1),
    "skewed to the left": lambda random, n: -0.06 * (random.exponential(size=n) - 1),
}


def analysis_of(rows: list[dict[str, Any]]) -> Analysis:
    """Return an analysis that consists of these rows."""
    return Analysis("null", TokenLayout((4, 4), ("cls",)), BLOCKS, pd.DataFrame(rows), {}, pd.DataFrame(), {})


def false_positives(null: str, noise: Callable[..., np.ndarray], n: int) -> float:
    """Return the share of data sets in which a condition that is exactly at its threshold holds by the interval."""
    random = np.random.RandomState(n)
    threshold = AT_THRESHOLD[null]

    def bounds(mean: float) -> np.ndarray:
        moments = Moments()
        moments.update(mean + noise(random, (n, DATA_SETS)))
        return np.stack([moments.mean, *moments.interval(ranges=np.full(DATA_SETS, RANGES["cosine"]))])

    if null.endswith("half"):
        return float(np.mean(above(ratio(bounds(threshold), bounds(2 * threshold)), 0.5) == 1))
    return float(np.mean(above(bounds(threshold), threshold) == 1))


def fall_of_all_blocks() -> list[dict[str, Any]]:
    """Return rows of norm_differentiation with a clear fall."""
    means = {"before": 0.5, "after": -0.2, "total": 0.7, "gamma": 0.7}
    return [
        {
            "metric": "norm_differentiation",
            **make_row((part, block, "norm1", "cls-patch", None), x, 64, "cosine", 0.0, (x, x)),
        }
        for part, x in means.items()
        for block in range(BLOCKS)
    ]


def no_special_basis(random: np.random.RandomState, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens (1 block, n, 1 + K, D) with random means and covariances, and a fall (1, n, D) at random."""
    spectrum = np.exp(-np.arange(CHANNELS) / 20)
    basis = np.linalg.qr(random.normal(size=(CHANNELS, CHANNELS)))[0] * spectrum
    means = random.normal(size=(2, CHANNELS)) / 4
    tokens = random.normal(size=(n, 1 + PATCHES, CHANNELS)) @ basis.T
    tokens[:, 0] += means[0]
    tokens[:, 1:] += means[1] + random.normal(size=(n, 1, CHANNELS)) @ basis.T
    return tokens[None], falls_at_random(random, n)


def planted(random: np.random.RandomState, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens whose CLS has most of its energy in five channels, and a fall that knows nothing of them."""
    tokens = random.normal(size=(n, 1 + PATCHES, CHANNELS))
    tokens[:, 0, :5] += 15
    return tokens[None], falls_at_random(random, n)


def falls_at_random(random: np.random.RandomState, n: int) -> np.ndarray:
    """Return the fall by channel, (1, n, D): few channels make most of it."""
    channels = random.permutation(random.exponential(size=CHANNELS) ** 3)
    return (0.3 * channels / channels.sum() * (1 + 0.2 * random.normal(size=(n, CHANNELS))))[None]


def profile(tokens_LnTD: np.ndarray, falls_LnD: np.ndarray) -> list[dict[str, Any]]:
    """Return rows of energy_profile, the same in all blocks."""
    metric: Metric = metrics.get("energy_profile")()
    for index in range(tokens_LnTD.shape[1]):
        metric.keep(index, tokens_LnTD[:, index].astype(np.float32), falls_LnD[:, index].astype(np.float32))
    metric.blocks = [0]
    found = [{"metric": "energy_profile", **row} for row in metric.rows()]
    return [{**row, "block": block} for row in found for block in range(BLOCKS)]


def supported(rows: list[dict[str, Any]], claim: str) -> bool:
    """Return whether a claim is called supported."""
    return {finding.name: finding.verdict for finding in judge(analysis_of(rows))}[claim] == "supported"


def measure() -> pd.DataFrame:
    """Return the share of data sets in which each claim is called supported, in per cent."""
    found = []
    for null in AT_THRESHOLD:
        for noise, draw in NOISES.items():
            shares = {n: 100 * false_positives(null, draw, n) for n in SIZES}
            found.append({"null": null, "images": noise, "data sets": DATA_SETS, **shares})
    for claim, null, make in (
        ("F2(a)", "no special basis", no_special_basis),
        ("F2(b)", "the fall is in other channels", planted),
    ):
        shares = {}
        for n in SIZES:
            random = np.random.RandomState(n)
            hits = []
            for _ in range(DATA_SETS_F2):
                rows = profile(*make(random, n)) + fall_of_all_blocks()
                hits.append(supported(rows, claim))
            shares[n] = 100 * np.mean(hits)
        found.append({"null": f"{claim}, {null}", "images": "normal", "data sets": DATA_SETS_F2, **shares})
        print(found[-1], flush=True)
    return pd.DataFrame(found)


def main() -> None:
    """Measure and write the page."""
    frame = measure()
    lines = ["| null | images | data sets | " + " | ".join(f"n = {n}" for n in SIZES) + " |"]
    lines.append("|---|---|---|" + "---|" * len(SIZES))
    for row in frame.itertuples(index=False):
        cells = [f"{share:.1f}" for share in row[3:]]
        lines.append(f"| {row[0]} | {row[1]} | {row[2]:,} | " + " | ".join(cells) + " |")
    text = (
        "# False positives of the rules for F1 and F2\n\n"
        "Per cent of simulated data sets in which a claim that is false, or exactly at its threshold, is called "
        f"supported (`python benchmarks/rules.py`). The rules allow 5. F1: one condition alone, in blocks that "
        f"share their images. F2: {CHANNELS} channels.\n\n" + "\n".join(lines) + "\n"
    )
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
