"""How numbers are written in running text and in tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def significant(value: float, digits: int = 4) -> str:
    """A number to so many significant digits, with a true minus; empty for NaN.

    >>> significant(-0.12344), significant(3e-7, 2)
    ('−0.1234', '3e−7')
    """
    if math.isnan(value):
        return ""
    written = f"{value + 0.0:.{digits}g}"
    return typeset(re.sub(r"e([+-])0*", lambda match: "e" + match[1].strip("+"), written))


def fixed(value: float, decimals: int = 3) -> str:
    """A number to so many decimals, with a true minus and no negative zero; empty for NaN.

    >>> fixed(-0.0312), fixed(-0.0001)
    ('−0.031', '0.000')
    """
    if math.isnan(value):
        return ""
    return typeset(re.sub(r"^-(0\.?0*)$", r"\1", f"{value:.{decimals}f}"))


def aligned(values: Sequence[float], interval: tuple[float, float]) -> list[str]:
    """Numbers of one difference to as many decimals as its interval gives meaning to, at most four digits.

    Args:
        values: the numbers, NaN for none.
        interval: the bounds of the 95 % interval of one of them, NaN for none; they are written last.

    >>> aligned([-1.137e-05, 0.309762, -0.309773], (-0.319695, -0.299851))
    ['0.000', '0.310', '−0.310', '−0.320', '−0.300']
    """
    written = [*values, *interval]
    largest = max((abs(value) for value in written if math.isfinite(value)), default=0.0)
    if not 1e-4 <= largest < 1e5:
        return [significant(value, 3) for value in written]
    decimals = 3 - math.floor(math.log10(largest))
    half = (interval[1] - interval[0]) / 2
    if half > 0:
        decimals = min(decimals, -math.floor(math.log10(half / 3.5)))  # 0.34 has two digits that matter, 0.36 one
    return [fixed(value, max(decimals, 0)) for value in written]


def counted(count: int, thing: str) -> str:
    """A count and what is counted, in the plural where it is one: "1 image", "1,734 rows"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def unbroken(text: str) -> str:
    """Text whose per cents and equations stay on one line."""
    return text.replace(" %", "\u00a0%").replace(" = ", "\u00a0=\u00a0").replace(" < ", "\u00a0<\u00a0")


def typeset(text: str) -> str:
    """Text with true minus signs in front of numbers; hyphens inside words stay.

    >>> typeset("in [-1, 1], 95-percent, 1e-5")
    'in [−1, 1], 95-percent, 1e−5'
    """
    return re.sub(r"(?<![\w)])-(?=\d)|(?<=\de)-(?=\d)", "−", text)
