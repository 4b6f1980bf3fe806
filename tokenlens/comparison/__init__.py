"""Compare the numbers of several models, with intervals and tests."""

from tokenlens.comparison.compare import compare
from tokenlens.comparison.comparison import Comparison
from tokenlens.comparison.pairing import Pairing

__all__ = [
    "Comparison",
    "Pairing",
    "compare",
]
