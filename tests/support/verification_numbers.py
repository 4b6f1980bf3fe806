"""Tables of numbers of trained models, drawn from known truths."""

from __future__ import annotations

import pandas as pd

from tokenlens.verification.numbers import NUMBERS

SETTING = "distill, a small model"


def table(rng, gains, seeds=3, *, sd=0.3, common=2.0, lost=0.0, setting=SETTING, losses=0.0, baseline_seeds=None):
    """Numbers of a standard model and of variants whose true mean IoU is higher by ``gains``.

    ``common`` is the spread that models of one seed share, ``sd`` the one that they do not.
    """
    rows = []
    every = range(seeds) if isinstance(seeds, int) else seeds
    others = every if baseline_seeds is None else baseline_seeds
    shared = {seed: rng.normal(0, common) for seed in {*every, *others}}
    for variant, gain in {"standard": 0.0, **gains}.items():
        for seed in others if variant == "standard" else every:
            own, accuracy = rng.normal(0, sd), rng.normal(0, 0.1)
            measured = [
                ("segmentation", "patches", size, "mIoU", 30 + size / 32 + shared[seed] + own + gain, 235)
                for size in (64, 128)
            ]
            if lost is not None:
                fall = lost if variant != "standard" else 0.0
                measured += [
                    ("knn", "cls", 64, "accuracy", 40 + shared[seed] + accuracy - fall, 500),
                    ("knn", "patch_mean", 64, "accuracy", 30 + rng.normal(0, 5), 500),
                ]
            measured.append(("training", "loss", 64, "loss", 1 + 0.01 * shared[seed] - losses * (gain > 0), 4000))
            model = (setting, variant, variant, "distill", "vit", seed)
            rows += [(*model, *keys, "d1", measure, x, n, x - 2, x + 2, 1) for *keys, measure, x, n in measured]
    return pd.DataFrame(rows, columns=list(NUMBERS))
