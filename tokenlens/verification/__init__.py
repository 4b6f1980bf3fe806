"""Check the findings of the paper over seeds: train, analyze, probe and judge."""

from tokenlens.verification.result import Verification
from tokenlens.verification.scales.base import Pace, Regime, RegimeProbe, regime_of, regimes
from tokenlens.verification.verify import plan, verify

__all__ = [
    "Pace",
    "Regime",
    "RegimeProbe",
    "Verification",
    "plan",
    "regime_of",
    "regimes",
    "verify",
]
