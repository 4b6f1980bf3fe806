"""Seed random generators from what a number is drawn for, never from what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_from(*numbers: int) -> int:
    """Return a 32-bit seed that depends on all of the numbers, each at least 0, e.g. (seed, step)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(*numbers: int) -> None:
    """Seed random, numpy.random and torch on all devices."""
    seed = seed_from(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_on_cpu(*numbers: int) -> None:
    """Seed random, numpy.random and torch's CPU generator, each differently; any whole numbers.

    For augmentation: ``torch.manual_seed`` would also seed CUDA, which a forked worker must not touch.
    """
    drawn = np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(3, np.uint64)
    random.seed(int(drawn[0]))
    np.random.seed(int(drawn[1]) % 2**32)
    torch.default_generator.manual_seed(int(drawn[2]) % 2**63)


@contextmanager
def preserve_random_state(devices: bool = True) -> Iterator[None]:
    """Restore random, numpy.random and torch on exit, as if nothing had been drawn.

    Args:
        devices: also restore the generators of GPUs.
    """
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=None if devices else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
