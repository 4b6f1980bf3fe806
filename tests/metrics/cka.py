"""Debiased linear CKA by U-centring (Székely and Rizzo 2014), from CLS and mean-patch features of all blocks."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "set"
NEEDS = ("cls",)


def _u_centred(x: np.ndarray) -> np.ndarray:
    """Return the Gram matrix of (N, D) without its diagonal, with row, column and grand means subtracted."""
    gram = x @ x.T
    np.fill_diagonal(gram, 0)
    n = len(gram)
    rows = gram.sum(0)
    centred = gram - rows[:, None] / (n - 2) - rows[None, :] / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0)
    return centred


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    a, b = _u_centred(x), _u_centred(y)
    own = (a * a).sum() * (b * b).sum()
    return float((a * b).sum() / np.sqrt(own))


def _features(stored: Stored) -> dict[str, list[np.ndarray]]:
    ends = [stored.tokens[block, "resid_post"] for block in sorted(stored.patterns)]
    return {
        "cls": [stored.of("cls", x)[:, 0] for x in ends],
        "patch": [stored.of("patch", x).mean(1) for x in ends],
    }


def reference_cka(stored: Stored) -> dict[Number, object]:
    features = _features(stored)
    return {
        ("", block, "resid_post", "cls-patch", None): debiased_cka(cls, patch)
        for block, (cls, patch) in enumerate(zip(features["cls"], features["patch"], strict=True))
    }


def reference_arrays(stored: Stored) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    features = _features(stored)
    arrays = {}
    for one, two, dims in (
        ("cls", "cls", ("block_cls", "block_cls_2")),
        ("cls", "patch", ("block_cls", "block_patch")),
        ("patch", "patch", ("block_patch", "block_patch_2")),
    ):
        values = [[debiased_cka(x, y) for y in features[two]] for x in features[one]]
        arrays[f"{one}-{two}"] = (dims, np.array(values))
    ends = stored.tokens.get((None, "final_norm"), stored.tokens[max(stored.patterns), "resid_post"])
    arrays["cls_features"] = (("image", "channel"), stored.of("cls", ends)[:, 0])
    arrays["patch_features"] = (("image", "channel"), stored.of("patch", ends).mean(1))
    return arrays
