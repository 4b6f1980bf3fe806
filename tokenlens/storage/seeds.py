"""The seeds that every random draw accepts."""

LARGEST_SEED = 2**32 - 1
"""Larger seeds would stand for the same random numbers as smaller ones."""


def check_seed(seed: int) -> None:
    """Raise ValueError unless a seed is a whole number from 0 to 2³² − 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"a seed is a whole number from 0 to {LARGEST_SEED}, got {seed!r}")
