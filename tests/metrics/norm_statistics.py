"""np.mean and np.var of each token at a norm's input, group by group, and log(σ_cls/σ_patch)."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "image"


def reference_norm_statistics(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site), norm in stored.norms.items():
        layer = norm.kind == "layer"
        spread = np.var(norm.x, axis=-1) if layer else (norm.x**2).mean(-1)
        for group in stored.groups:
            at = stored.positions(group)
            if layer:
                numbers["mean", block, site, group, None] = np.mean(norm.x, axis=-1)[:, at].mean(-1)
            numbers["variance" if layer else "mean_square", block, site, group, None] = spread[:, at].mean(-1)
        if "cls" in stored.groups:
            sigma = np.sqrt(spread)
            ratio = sigma[:, stored.positions("cls")] / sigma[:, stored.positions("patch")]
            numbers["log_std_ratio", block, site, "cls-patch", None] = np.log(ratio).mean(-1)
    return numbers
