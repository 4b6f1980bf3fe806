"""Ridge regression agrees with least squares on centred data with a penalty."""

from __future__ import annotations

import numpy as np
import torch

from tokenlens.training.objectives._ridge import RIDGE, Ridge


def test_it_is_the_regression_of_standardized_targets():
    draw = np.random.default_rng(0)
    x, noise = draw.normal(3, 2, (200, 5)), draw.normal(0, 0.1, (200, 2))
    y = x @ draw.normal(size=(5, 2)) + noise + 7
    ridge = Ridge()
    for part in (slice(0, 70), slice(70, 200)):
        ridge.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    weight, bias, mean, sd = (tensor.numpy() for tensor in ridge.solve())
    np.testing.assert_allclose(mean, y.mean(0))
    np.testing.assert_allclose(sd, y.std(0))
    centred, targets = x - x.mean(0), (y - y.mean(0)) / y.std(0)
    penalty = RIDGE * x.var(0).mean() * len(x) * np.eye(5)
    expected = np.linalg.solve(centred.T @ centred + penalty, centred.T @ targets)
    np.testing.assert_allclose(weight.T, expected)
    np.testing.assert_allclose(x.mean(0) @ weight.T + bias, 0, atol=1e-9)
