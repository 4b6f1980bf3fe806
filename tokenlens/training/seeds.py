"""Random states that come from what a number is drawn for, never from what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_from(*numbers: int) -> int:
    """A seed of 32 bits that depends on all of the numbers, each at least 0, e.g. (seed, step)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(*numbers: int) -> None:
    """Seed random, numpy.random and torch (all devices) from some numbers."""
    seed = seed_from(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def keeping_random_state() -> Iterator[None]:
    """Afterwards random, numpy.random and torch go on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
