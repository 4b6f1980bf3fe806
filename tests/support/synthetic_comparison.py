"""A comparison with plausible numbers, without a model, for tests of figures and report."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from tests.support.synthetic_analysis import synthetic_analysis
from tokenlens.analysis.analysis import KEY_COLUMNS, Analysis
from tokenlens.comparison.compare import compare
from tokenlens.comparison.comparison import Comparison
from tokenlens.metrics import NamedArray


def synthetic_comparison(
    *,
    models: int = 2,
    n: int = 64,
    paired: bool = True,
    equal: bool = False,
    blocks: tuple[int, ...] = (12, 12, 6),
    **options: Any,
) -> Comparison:
    """Compare DINOv2-S/14, an untrained copy of it, and a model of 6 blocks with registers.

    With ``equal`` all models are the first one; with ``paired=False`` each has different images. ``options`` are passed
    to ``synthetic_analysis``.
    """
    kinds: list[dict[str, Any]] = [
        {},
        {"untrained": True, "differentiates": False},
        {"model": "vit_small_patch14_reg4_dinov2", "groups": ("cls", "reg", "reg", "reg", "reg", "patch")},
    ]
    analyses = []
    for number in range(models):
        kind = {} if equal else kinds[number % 3] | {"seed": number}
        depth = blocks[0] if equal else blocks[number % len(blocks)]
        analysis = synthetic_analysis(**{"n": n, "blocks": depth, **options, **kind})
        analyses.append(with_values(analysis, images=0 if paired else number, seed=0 if equal else number))
    return compare(*analyses)


def with_values(analysis: Analysis, images: int = 0, seed: int = 0) -> Analysis:
    """Add values per image with the means and spreads of the table, hashes, and features to an analysis.

    As in real models, half of the spread over images is common to all models, that is, independent of ``seed``.
    """
    n = analysis.images
    rows = analysis.table[analysis.table["sd"].notna()]
    of_image, own = (np.random.default_rng(number).normal(size=(n, len(rows) + 8)) for number in (images, seed + 99))
    noise = (of_image[:, :1] + of_image[:, : len(rows)] + own[:, : len(rows)]) if n > 1 else own[:, : len(rows)]
    noise = (noise - noise.mean(0)) / (noise.std(0, ddof=1) if n > 1 else 1)
    values = rows["value"].to_numpy() + rows["sd"].to_numpy() * noise
    keys = rows[list(KEY_COLUMNS)].fillna({"block": -1, "head": -1}).astype({"block": int, "head": int})
    provenance = analysis.provenance
    names = provenance["images"]["names"]
    hashes = [f"{images:032x}{i:032x}" for i in range(n)]
    arrays = dict(analysis.arrays)
    if "cls" in analysis.layout.prefix:
        mixing = np.random.default_rng(seed).normal(size=(2, 8, 32))
        for group, weights in zip(("cls", "patch"), mixing, strict=True):
            features = (of_image[:, :8] @ weights + own[:, -1:]).astype(np.float32)
            arrays[f"cka/{group}_features"] = NamedArray(features, ("image", "channel"), "activation")
    return replace(
        analysis,
        arrays=arrays,
        per_image=pd.DataFrame(
            values.astype(np.float32),
            index=pd.Index(names, name="image"),
            columns=pd.MultiIndex.from_frame(keys) if len(keys) else None,
        ),
        provenance=provenance | {"images": provenance["images"] | {"hashes": hashes}},
    )
