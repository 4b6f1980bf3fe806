"""Cosines of a norm's tokens before it, after centring, after γ and after β, recomputed stage by stage."""

from itertools import pairwise

import numpy as np

from tests.metrics._stored import Number, Stored, StoredNorm, cosines, mean_off_diagonal

LEVEL = "image"


def _per_token(stored: Stored, prefix: np.ndarray | None, patch: np.ndarray | None) -> np.ndarray | None:
    """Return γ or β of each token, (T, D)."""
    if prefix is None or patch is None:
        return None
    is_patch = np.isin(np.arange(len(stored.prefix) + stored.grid[0] * stored.grid[1]), stored.positions("patch"))
    return np.where(is_patch[:, None], patch, prefix)


def _stages(stored: Stored, norm: StoredNorm, after: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the name of each stage and the tokens after it, ending with the output of the norm."""
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


def _own(stored: Stored, norm: StoredNorm, after: np.ndarray) -> dict[str, np.ndarray]:
    """Compare CLS with a CLS that gets the patches' weights, for specialized norms with a bias."""

    def cosine(cls: np.ndarray, patch: np.ndarray) -> np.ndarray:
        return cosines(cls, patch).mean((-1, -2))

    scale = np.sqrt(norm.x.var(-1, keepdims=True) + 1e-5)
    centred = (norm.x - norm.x.mean(-1, keepdims=True)) / scale
    cls, patch = stored.of("cls", centred), stored.of("patch", centred)
    weighted = cosine(cls * norm.weight_patch, patch * norm.weight_patch)
    both = cosine(cls * norm.weight_patch + norm.bias_patch, patch * norm.weight_patch + norm.bias_patch)
    apart = cosine(cls * norm.weight_prefix, patch * norm.weight_patch)
    real = cosine(stored.of("cls", after), stored.of("patch", after))
    return {
        "gamma_shared": cosine(cls, patch) - weighted,
        "gamma_own": weighted - apart,
        "beta_shared": weighted - both,
        "beta_own": apart - real - (weighted - both),
        "total_own": both - real,
    }


def _two_sets(norm: StoredNorm) -> bool:
    return norm.weight_prefix is not None and not np.array_equal(norm.weight_prefix, norm.weight_patch)


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
            if pair == "cls-patch" and any(map(_two_sets, stored.norms.values())):
                own = _own(stored, norm, after)
                # With shared weights the difference is exactly 0.
                falls |= (
                    own
                    if _two_sets(norm)
                    else {
                        part: 0 * value if part.endswith("_own") else falls[part.partition("_")[0]]
                        for part, value in own.items()
                    }
                )
            numbers |= {(name, block, site, pair, None): value for name, value in falls.items()}
    return numbers


def reference_arrays(stored: Stored) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return γ and β of each norm, and both sets of the specialized ones."""
    arrays = {}
    for site in ("norm1", "norm2", "final_norm"):
        norms = [norm for (_, name), norm in stored.norms.items() if name == site]
        sides = {"cls_": "prefix", "patch_": "patch"} if any(map(_two_sets, norms)) else {"": "patch"}
        for name, tensor in (("gamma", "weight"), ("beta", "bias")):
            for side, which in sides.items():
                weights = [getattr(norm, f"{tensor}_{which}") for norm in norms]
                if norms and all(weight is not None for weight in weights):
                    final = site == "final_norm"
                    dims = ("channel",) if final else ("block", "channel")
                    arrays[f"{side}{name}_{site}"] = dims, weights[0] if final else np.stack(weights)
    return arrays
