"""Check the findings of the paper over seeds: train, analyze, probe and judge."""

from tokenlens.verification.prepare import plan
from tokenlens.verification.result import Verification
from tokenlens.verification.scales.base import Pace, Scale, ScaleProbe, scale_of
from tokenlens.verification.verify import verify

__all__ = [
    "Pace",
    "Scale",
    "ScaleProbe",
    "Verification",
    "plan",
    "scale_of",
    "verify",
]
