"""How large a verification is, one file per scale."""

from tokenlens.verification.scales.base import Pace, Scale, ScaleProbe, scale_of, scales

__all__ = [
    "Pace",
    "Scale",
    "ScaleProbe",
    "scale_of",
    "scales",
]
