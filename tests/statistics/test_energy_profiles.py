"""Distances of energy profiles, their rotations, and shares in chosen channels."""

from __future__ import annotations

import numpy as np
import pytest

from tokenlens.statistics.energy_profiles import (
    most_different_channels,
    profile_distance,
    random_shares,
    rotated_distances,
    share_in_channels,
)


def energy_of(vectors_ND: np.ndarray, weights_4N: np.ndarray) -> np.ndarray:
    return (weights_4N @ vectors_ND**2).reshape(2, 2, -1)


def weights(count: int) -> np.ndarray:
    return np.eye(4)[np.arange(count) % 4].T


def test_noise_does_not_raise_the_distance():
    random = np.random.default_rng(0)
    energy = random.exponential(size=(500, 2, 2, 40))
    assert profile_distance(energy).mean() == pytest.approx(0, abs=0.01)
    plain = np.abs(np.diff((energy / energy.sum(-1, keepdims=True)).mean(-2), axis=-2)).sum(-1) / 2
    assert plain.mean() > 0.2


def test_fewer_vectors_than_channels_are_rotated_as_all_channels_would_be():
    """The distribution of the distances is that of full random rotations."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(8, 24)) * np.exp(-np.arange(24) / 5)
    few = rotated_distances(vectors[None], weights(8)[None], 2000)[:, 0, 0]
    full = []
    for _ in range(2000):
        basis, upper = np.linalg.qr(random.normal(size=(24, 24)))
        full.append(profile_distance(energy_of(vectors @ (basis * np.sign(np.diag(upper))), weights(8))))
    assert few.mean() == pytest.approx(np.mean(full), abs=0.01)
    assert few.std() == pytest.approx(np.std(full), rel=0.1)


def test_rotations_are_repeatable_and_fewer_are_the_first():
    vectors = np.random.default_rng(0).normal(size=(2, 8, 16))
    some = rotated_distances(vectors, np.stack([weights(8)] * 3), 5)
    assert some.shape == (5, 2, 3)
    np.testing.assert_array_equal(some[:2], rotated_distances(vectors, np.stack([weights(8)] * 3), 2))


def test_the_share_is_measured_on_the_other_half():
    energy = np.ones((2, 2, 6))
    energy[0, 0, 1], energy[0, 1, 4] = 50.0, 50.0
    chosen = most_different_channels(energy, 1)
    assert chosen.tolist() == [[1], [4]]
    falls = np.array([[0.0, 0, 0, 0, 3, 1], [0.0, 1, 0, 0, 0, 1]])
    assert share_in_channels(falls, chosen) == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_random_channels_have_their_part():
    shares = random_shares(np.ones((1, 20)), 5)
    np.testing.assert_allclose(shares, 0.25)
