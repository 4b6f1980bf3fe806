"""How large a verification is, one file per scale."""

from tokenlens.verification.scales.base import Pace, Regime, RegimeProbe, regime_of, regimes

__all__ = [
    "Pace",
    "Regime",
    "RegimeProbe",
    "regime_of",
    "regimes",
]
