"""Differences, intervals and seeds in words, for the sentences of findings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tokenlens.statistics.seed_effects import MIN_SEEDS, Effect

Unmet = Mapping[tuple[str, str], Sequence[str]]
"""Reasons why a comparison with the standard models says nothing, by setting and variant; none if all is well."""


def known(value: float) -> float | None:
    """Return a number, None for NaN."""
    return None if math.isnan(value) else float(value)


def bounds_of(effect: Effect) -> tuple[float, float] | None:
    """Return the interval of an effect, None without one."""
    return None if math.isnan(effect.low) else (effect.low, effect.high)


def format_signed(value: float, decimals: int) -> str:
    """Return a difference with its sign, a true minus and no negative zero; "?" for NaN."""
    if math.isnan(value):
        return "?"
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def format_points(value: float) -> str:
    """Return a difference in percentage points with its sign and one decimal.

    >>> format_points(-0.04), format_points(1.26)
    ('0.0', '+1.3')
    """
    return format_signed(value, 1)


def describe_interval(effect: Effect, decimals: int = 1) -> str:
    """Return the interval of an effect in words."""
    if math.isnan(effect.low):
        return "no interval"
    return f"95 % interval {format_signed(effect.low, decimals)} to {format_signed(effect.high, decimals)}"


def describe_seeds(effect: Effect) -> str:
    """Return the number of seeds behind an effect, the difference in each, and the seeds that were left out."""
    count = f"{effect.seeds} {'seed' if effect.seeds == 1 else 'seeds'}"
    if not effect.paired:
        return f"at least {count} of each, not matched: fewer than {MIN_SEEDS} seeds are in both"
    each = ", ".join(format_points(value) for value in effect.each.values())
    text = f"{count}, matched" + (f": {each}" if 0 < effect.seeds <= 10 else "")
    if effect.left_out:
        name = "seed" if len(effect.left_out) == 1 else "seeds"
        text += f"; {name} {join_words([str(seed) for seed in effect.left_out])} left out, without a match"
    return text


def join_words(words: Sequence[str]) -> str:
    """Join words with commas, and with "and" before the last.

    >>> join_words(["F1", "F2", "F3"])
    'F1, F2 and F3'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
