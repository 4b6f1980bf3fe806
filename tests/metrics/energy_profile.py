"""Energy profiles from explicit sets of channels, with the rotations applied to whole tokens in float64."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "whole"
"""Value, low and high end of the interval: the halves depend on the index of an image, not on its rank."""
NEEDS = ("cls",)

HALF = np.stack([(coins := np.random.RandomState(0).randint(0, 2, 32)), 1 - coins], axis=1).ravel()


def _sampled(stored: Stored, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return CLS (n, D) and the patches that count (n, K, D)."""
    places = np.random.RandomState(0).permutation(stored.positions("patch"))[:8]
    each = min(len(places), 64 // len(x))
    patches = [np.roll(places, -index)[:each] for index in range(len(x))]
    return stored.of("cls", x)[:, 0], np.stack([x[i, chosen] for i, chosen in enumerate(patches)])


def _profile(tokens: np.ndarray) -> np.ndarray:
    energy = (tokens**2).reshape(-1, tokens.shape[-1]).sum(0)
    return energy / energy.sum()


def _both(cls: np.ndarray, patch: np.ndarray, fall: np.ndarray, images: np.ndarray) -> tuple[float, float]:
    """Return distance and share of the fall of some of the images."""
    differences, falls = [], []
    for half in (0, 1):
        inside = images[HALF[images] == half]
        differences.append(_profile(cls[inside]) - _profile(patch[inside]))
        falls.append(fall[inside].sum(0))
    distances, shares = [], []
    for chosen, measured in ((0, 1), (1, 0)):
        distances.append(sum(differences[measured][d] for d in np.flatnonzero(differences[chosen] > 0)))
        top = np.argsort(-np.abs(differences[chosen]), kind="stable")[:5]
        shares.append(falls[measured][top].sum() / falls[measured].sum())
    return float(np.mean(distances)), float(np.mean(shares))


def _jackknife(values: np.ndarray, centre: float) -> tuple[float, float]:
    from scipy import stats

    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum())
    return centre - half, centre + half


def _rotations(channels: int, rank: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    found = []
    for _ in range(200):
        basis, upper = np.linalg.qr(random.standard_normal((channels, rank), dtype=np.float32).astype(float))
        found.append(basis * np.sign(np.diagonal(upper)))
    return found


def _contributions(stored: Stored, x: np.ndarray) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return (stored.of("cls", unit) * stored.of("patch", unit)).mean(1)


def reference_energy_profile(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    everyone = np.arange(stored.images)
    without = [np.delete(everyone, image) for image in everyone]
    for (block, site), norm in stored.norms.items():
        if site != "norm1":
            continue
        cls, patch = _sampled(stored, norm.x)
        fall = _contributions(stored, norm.x) - _contributions(stored, stored.tokens[block, site])
        channels = cls.shape[-1]
        assert len(cls) * (1 + patch.shape[1]) >= channels, "then a rotation is one of all channels"
        distance, share = _both(cls, patch, fall, everyone)
        left = np.array([_both(cls, patch, fall, images) for images in without])
        rotations = _rotations(channels, channels)
        rotated = np.array([_both(cls @ q.T, patch @ q.T, fall, everyone)[0] for q in rotations])
        few = [np.mean([_both(cls @ q.T, patch @ q.T, fall, images)[0] for q in rotations[:20]]) for images in without]
        random = np.random.default_rng(0).random((1000, channels))
        sets = np.argsort(random, axis=-1)[:, :5]
        mean = fall.mean(0)
        found = {
            "distance": (distance, *_jackknife(left[:, 0], distance)),
            "fall_share": (share, *_jackknife(left[:, 1], share)),
            "rotated_mean": (rotated.mean(), np.nan, np.nan),
            "rotated_95": (np.percentile(rotated, 95), np.nan, np.nan),
            "above_rotated": (
                distance - rotated.mean(),
                *_jackknife(left[:, 0] - np.array(few), distance - rotated.mean()),
            ),
            "random_95": (np.percentile(mean[sets].sum(-1) / mean.sum(), 95), np.nan, np.nan),
        }
        numbers |= {(part, block, site, "cls-patch", None): triple for part, triple in found.items()}
    return numbers


def reference_arrays(stored: Stored) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    inputs = [norm.x for (_, site), norm in stored.norms.items() if site == "norm1"]
    profiles = [[_profile(tokens) for tokens in _sampled(stored, x)] for x in inputs]
    dims = ("block", "channel")
    return {
        f"{name}_norm1": (dims, np.stack(list(rows)))
        for name, rows in zip(("cls", "patch"), zip(*profiles, strict=True), strict=True)
    }
