"""A training made of plausible numbers, without a model: for tests of its figure and page."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from tokenlens.storage.tables import COLUMNS
from tokenlens.training.recipe import Recipe
from tokenlens.training.trained_run import TrainedRun


@dataclass(frozen=True)
class SyntheticRun(TrainedRun):
    """A training whose tables are in memory."""

    rows: list[pd.DataFrame] = field(default_factory=list)

    @property
    def diagnostics(self):
        return self.rows[0]

    @property
    def metrics(self):
        steps = sorted(set(self.diagnostics["step"]))
        return pd.DataFrame({"step": steps, "epoch": 0.0, "loss": [2.0 / (1 + step) for step in steps]})


def trained(
    *,
    blocks=6,
    steps=(*range(0, 2000, 50), 1999),
    n=32,
    groups=("cls", "patch"),
    model="vit_tiny_patch16_224",
    specialization=None,
    state="finished",
    name="tiny_dino",
    **settings,
):
    """Return a training in which the norm before attention learns to separate CLS and patches."""
    recipe = Recipe(
        objective="dino",
        model=model,
        specialization=specialization,
        steps=2000,
        **{"diagnose_every": 50, "seed": 3} | settings,
    )
    rng, rows = np.random.default_rng(0), []
    for step in steps:
        learned = 1 - np.exp(-step / max(max(steps) / 4, 1))
        for block in range(blocks):
            depth = block / max(blocks - 1, 1)
            values = [
                ("norm_differentiation", "total", "norm1", "cls-patch", 0.5 * depth * learned - 0.05 * (1 - depth)),
                ("norm_differentiation", "gamma", "norm1", "cls-patch", 9.0),
                ("norm_differentiation", "total", "norm1", "patch-patch", 9.0),
                ("cls_patch_cosine", "", "resid_post", "cls-patch", 0.6 - (0.2 + 0.7 * depth) * learned),
                ("cls_patch_cosine", "", "norm1", "cls-patch", 9.0),
                ("token_norm", "mean", "resid_post", "cls", 3 + 9 * learned + block),
                ("token_norm", "mean", "resid_post", "patch", 3 + 4 * learned + block),
                ("token_norm", "max_over_median", "resid_post", "patch", 9.0),
            ]
            for metric, part, site, group, value in values:
                if set(group.split("-")) <= set(groups):
                    value += rng.normal(0, 0.01)
                    keys = step, "VisionTransformer", metric, part, block, site, group, pd.NA
                    rows.append((*keys, value, 0.1, n, value - 0.03, value + 0.03, "cosine"))
    run = SyntheticRun(
        Path("runs/tiny_dino_seed3"),
        {
            "name": name,
            "seed": recipe.seed,
            "steps": 2000,
            "step": max(steps),
            "state": state,
            "recipe": recipe.to_dict(),
            "data": {"source": "/data/photos", "count": 640},
            "images_per_second": 123.4,
            "sessions": [{"command": f"tokenlens train {name} --out runs/tiny_dino_seed3"}],
        },
    )
    run.rows.append(pd.DataFrame(rows, columns=("step", *COLUMNS)))
    return run
