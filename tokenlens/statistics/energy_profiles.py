"""Distance of the energy profiles of two groups of vectors over channels, against random rotations of the channels."""

# Shapes: L blocks, N vectors, D channels; the axes (2, 2) are group (cls, patch) and half of the images.

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]

ROTATIONS = 200
RANDOM_SETS = 1000
ROWS_AT_ONCE = 16


def profile_differences(energy_22D: NDArray[Any]) -> NDArray[Any]:
    """Compute p_cls − p_patch in each half, (..., 2, D), from energies per channel (..., 2, 2, D).

    p is the share of a group's energy in each channel.
    """
    profiles = energy_22D / energy_22D.sum(-1, keepdims=True)
    difference: NDArray[Any] = profiles[..., 0, :, :] - profiles[..., 1, :, :]
    return difference


def profile_distance(energy_22D: NDArray[Any]) -> NDArray[Any]:
    """Compute the cross-fitted total variation of two energy profiles, (...), from energies (..., 2, 2, D).

    The channels in which CLS has the larger share are chosen on one half of the images, and the difference of the two
    groups' shares in them is measured on the other; the mean of both ways. 1 if the groups share no channel, about 0
    if their profiles are alike; noise can make it negative, and does not raise it.

    >>> alike, apart = np.ones((2, 2, 4)), np.zeros((2, 2, 4))
    >>> apart[0, :, 0], apart[1, :, 1] = 5.0, 3.0
    >>> float(profile_distance(alike)), float(profile_distance(apart))
    (0.0, 1.0)
    """
    differences_2D = profile_differences(energy_22D)
    chosen_2D = differences_2D[..., ::-1, :] > 0
    distance: NDArray[Any] = (differences_2D * chosen_2D).sum(-1).mean(-1)
    return distance


def most_different_channels(energy_22D: Array, count: int) -> NDArray[np.int64]:
    """Return the channels whose shares of energy differ most between the groups in each half, (..., 2, count)."""
    order = np.argsort(-np.abs(profile_differences(energy_22D)), axis=-1, kind="stable")
    return order[..., :count]


def rotated_distances(
    vectors_LND: NDArray[np.floating],
    weights_W4N: Array,
    rotations: int = ROTATIONS,
    seed: int = 0,
    rotations_of_others: int | None = None,
) -> NDArray[np.float64]:
    """Compute ``profile_distance`` after random rotations of the channels, the same ones everywhere, (rotations, L, W).

    N vectors span at most N directions, so their rotation needs as many orthonormal rows and not D. The rotations are
    uniform (Haar): the orthonormal factor of a Gaussian matrix, with the signs of Stewart (1980). Float32, which is
    far below the spread of the rotations.

    Args:
        vectors_LND: the vectors of both groups.
        weights_W4N: W sets of weights of each vector in the energy of group and half, in the order cls 0, cls 1,
            patch 0, patch 1.
        rotations: number of rotations.
        seed: seed of the rotations; fewer rotations of the same seed are the first ones of more.
        rotations_of_others: rotations of all sets of weights but the first, NaN after them; all by default.
    """
    blocks, count, channels = vectors_LND.shape
    rank = min(count, channels)
    vectors = np.asarray(vectors_LND, dtype=np.float64)
    ends = [count]
    if rank < channels:
        vectors = np.asarray(np.linalg.qr(vectors.swapaxes(-1, -2), mode="r")).swapaxes(-1, -2)
        # Triangular: the first vectors lie in the first directions.
        ends = [*range(ROWS_AT_ONCE, count, ROWS_AT_ONCE), count]
    parts = [
        np.ascontiguousarray(vectors[:, start:end, : min(end, rank)], dtype=np.float32)
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    weights = weights_W4N.reshape(-1, count).astype(np.float32)
    random = np.random.default_rng(seed)
    distances = np.full((rotations, blocks, len(weights_W4N)), np.nan)
    rotated = np.empty((blocks, count, channels), dtype=np.float32)
    for index in range(rotations):
        basis = _orthonormal(random.standard_normal((channels, rank), dtype=np.float32)).T
        for part, end in zip(parts, ends, strict=True):
            rows = part.reshape(-1, part.shape[-1]) @ basis[: part.shape[-1]]
            np.square(rows.reshape(blocks, -1, channels), out=rotated[:, end - part.shape[1] : end])
        used = weights if rotations_of_others is None or index < rotations_of_others else weights[:4]
        energy = (used @ rotated).reshape(blocks, -1, 2, 2, channels)
        distances[index, :, : energy.shape[1]] = profile_distance(energy)
    return distances


def _orthonormal(gaussian: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the orthonormal factor of a Gaussian matrix whose triangular factor has a positive diagonal."""
    rows, columns = gaussian.shape
    if 2 * columns <= rows:  # well conditioned, so that the factor of Cholesky, which costs half, loses no digits
        inverse = linalg.lapack.strtri(linalg.cholesky(gaussian.T @ gaussian, check_finite=False))[0]
        return np.asarray(gaussian @ inverse)
    basis, upper = linalg.qr(gaussian, mode="economic", overwrite_a=True, check_finite=False)
    return np.asarray(basis * np.sign(np.diagonal(upper)))


def share_in_channels(values_2D: Array, chosen_2K: NDArray[np.int64]) -> Array:
    """Compute the share of a sum over channels that lies in channels chosen on the other half, mean of both halves.

    Args:
        values_2D: a number per channel in each half, (..., 2, D).
        chosen_2K: channels chosen on each half, (..., 2, K).
    """
    inside = np.take_along_axis(values_2D, chosen_2K[..., ::-1, :], axis=-1).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Array = (inside / values_2D.sum(-1)).mean(-1)
    return share


def random_shares(values_LD: Array, count: int, sets: int = RANDOM_SETS, seed: int = 0) -> Array:
    """Compute the share of a sum over channels that lies in random sets of ``count`` channels, (L, sets)."""
    channels = values_LD.shape[-1]
    random = np.random.default_rng(seed)
    chosen = np.argpartition(random.random((sets, channels)), count - 1, axis=-1)[:, :count]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: Array = values_LD[:, chosen].sum(-1) / values_LD.sum(-1, keepdims=True)
    return shares
