"""Seeding and restoring random states."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import numpy as np
import pytest
import torch

from tokenlens.training.seeds import preserve_random_state, seed_all, seed_on_cpu


def states() -> tuple[Any, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


@pytest.mark.parametrize("devices", [True, False])
def test_random_states_are_restored_even_after_an_error(devices: bool) -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = states()
    with contextlib.suppress(KeyError), preserve_random_state(devices):
        random.random(), np.random.rand(), torch.rand(())
        raise KeyError
    assert states() == before


@pytest.mark.parametrize("seed", [seed_all, seed_on_cpu])
def test_all_generators_are_seeded_by_all_numbers(seed: Any) -> None:
    found = set()
    with preserve_random_state():
        for numbers in ((1, 2), (2, 1), (1, 2)):
            seed(*numbers)
            found.add((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert len(found) == 2
