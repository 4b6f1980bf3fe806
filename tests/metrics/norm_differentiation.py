"""Cosines of a norm's tokens before it, after centring, after γ and after β, recomputed stage by stage."""

from itertools import pairwise

import numpy as np

from ._stored import Number, Stored, StoredNorm, cosines, mean_off_diagonal

LEVEL = "image"


def _per_token(stored: Stored, prefix: np.ndarray | None, patch: np.ndarray | None) -> np.ndarray | None:
    """γ or β of each token, (T, D)."""
    if prefix is None or patch is None:
        return None
    is_patch = np.isin(np.arange(len(stored.prefix) + stored.grid[0] * stored.grid[1]), stored.positions("patch"))
    return np.where(is_patch[:, None], patch, prefix)


def _stages(stored: Stored, norm: StoredNorm, after: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The name of each stage and the tokens after it; the last are those that the norm really gave."""
    stages = [("before", norm.x)]
    x = norm.x
    if norm.kind == "layer":
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        stages.append(("centring", x))
    weight = _per_token(stored, norm.weight_prefix, norm.weight_patch)
    x = x if weight is None else x * weight
    stages.append(("gamma", x))
    if norm.bias_prefix is not None:
        stages.append(("beta", after))
    return stages


def reference_norm_differentiation(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site), norm in stored.norms.items():
        after = stored.tokens[block, site]
        stages = _stages(stored, norm, after)
        for pair in ("cls-patch", "patch-patch") if "cls" in stored.groups else ("patch-patch",):

            def cosine(x: np.ndarray, pair: str = pair) -> np.ndarray:
                patch = stored.of("patch", x)
                if pair == "patch-patch":
                    return mean_off_diagonal(cosines(patch, patch))
                return cosines(stored.of("cls", x), patch).mean((-1, -2))

            falls = {}
            for (_, earlier), (name, later) in pairwise(stages):
                falls[name] = cosine(earlier) - cosine(later)
            falls |= {"before": cosine(norm.x), "after": cosine(after), "total": cosine(norm.x) - cosine(after)}
            numbers |= {(name, block, site, pair, None): value for name, value in falls.items()}
    return numbers
