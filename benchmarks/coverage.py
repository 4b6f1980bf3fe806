"""Measure how often the 95 % intervals of the table cover, by drawing sets of images from real per-image values.

    python benchmarks/coverage.py collect --photos FOLDER --checkpoint FILE --cache FILE   # one analysis, minutes
    python benchmarks/coverage.py measure --cache FILE                                     # benchmarks/results/coverage.md

The photographs are the population: sets of n are drawn from them with replacement, so that n = 200 of 500 is not
flattered, and the number of the population is what an interval has to cover.
"""

# Shapes: N images of the population, n images of a set, S numbers.

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tokenlens.analysis import analyze
from tokenlens.metrics import JackknifeMetric
from tokenlens.reduction.summaries import BatchSummary


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

    with patch.object(JackknifeMetric, "update", keep), patch("tokenlens.metrics.cka.CKA_IMAGES", 10**9):
        analysis = analyze("vit_small_patch14_dinov2", photos, checkpoint=checkpoint, img_size=224, limit=limit)
    return {
        "per_image": analysis.per_image,
        "terms": {key: np.concatenate(parts) for key, parts in terms.items()},
        "metrics": states,
    }


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["collect", "measure"])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--cache", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "collect":
        found = collect(options.photos, options.checkpoint, options.limit)
        options.cache.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()
