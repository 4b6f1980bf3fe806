"""Scales of a verification (models, data, seeds, probes), one file each."""

from tokenlens.verification.scales.base import Pace, Scale, ScaleProbe, scale_of, scales

__all__ = [
    "Pace",
    "Scale",
    "ScaleProbe",
    "scale_of",
    "scales",
]
