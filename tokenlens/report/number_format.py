"""Format numbers for text and tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from markupsafe import Markup


def with_digits(value: float, digits: int = 4) -> str:
    """Format a number to some significant digits, with a true minus sign; NaN gives an empty string.

    >>> with_digits(-0.12344), with_digits(3e-7, 2)
    ('−0.1234', '3e−7')
    """
    if math.isnan(value):
        return ""
    written = f"{value + 0.0:.{digits}g}"
    return typeset(re.sub(r"e([+-])0*", lambda match: "e" + match[1].strip("+"), written))


def with_decimals(value: float, decimals: int = 3) -> str:
    """Format a number to some decimals, with a true minus sign and no negative zero; NaN gives an empty string.

    >>> with_decimals(-0.0312), with_decimals(-0.0001)
    ('−0.031', '0.000')
    """
    if math.isnan(value):
        return ""
    return typeset(re.sub(r"^-(0\.?0*)$", r"\1", f"{value:.{decimals}f}"))


def aligned_numbers(values: Sequence[float], interval: tuple[float, float]) -> list[str]:
    """Format numbers and an interval to the decimals that the width of the interval justifies, at most four digits.

    Args:
        values: the numbers, which may be NaN.
        interval: the bounds of the 95 % interval of one of them, or NaN; they come last in the result.

    >>> aligned_numbers([-1.137e-05, 0.309762, -0.309773], (-0.319695, -0.299851))
    ['0.000', '0.310', '−0.310', '−0.320', '−0.300']
    """
    written = [*values, *interval]
    largest = max((abs(value) for value in written if math.isfinite(value)), default=0.0)
    if not 1e-4 <= largest < 1e5:
        return [with_digits(value, 3) for value in written]
    decimals = 3 - math.floor(math.log10(largest))
    half = (interval[1] - interval[0]) / 2
    if half > 0:
        decimals = min(decimals, -math.floor(math.log10(half / 3.5)))  # two digits for 0.34, one for 0.36
    return [with_decimals(value, max(decimals, 0)) for value in written]


def unbroken(text: str) -> str:
    """Insert no-break spaces into percentages, equations, and changes from one number to another."""
    text = text.replace(" %", "\u00a0%")
    return re.sub(r" ([=<→]) ", "\u00a0\\1\u00a0", text)


def typeset(text: str) -> str:
    """Replace hyphens before numbers by true minus signs; hyphens inside words stay.

    >>> typeset("in [-1, 1], 95-percent, 1e-5")
    'in [−1, 1], 95-percent, 1e−5'
    """
    return re.sub(r"(?<![\w)])-(?=\d)|(?<=\de)-(?=\d)", "−", text)


def breakable(text: str) -> Markup:
    """Escape a name, and allow a line to break where one of its parts ends, instead of anywhere.

    >>> str(breakable("vit_small/a.b <x>"))
    'vit_<wbr>small/<wbr>a.<wbr>b &lt;x&gt;'
    """
    parts = re.split(r"(?<=\w[_/])(?=\w)|(?<=\w[.-])(?=[^\W\d])", text)
    return Markup("<wbr>").join(parts)
