"""Probes: train a small head on a frozen model's features and test it. One file per probe."""

from tokenlens.probes._extraction import SplitFeatures, extract_features
from tokenlens.probes._features import RAW_PIXELS, FrozenModel
from tokenlens.probes._fitted import FittedProbe, load_probe
from tokenlens.probes._heads import Heads, Schedule, hold_out, train_heads
from tokenlens.probes._probe import SOURCES, probe
from tokenlens.probes._result import ProbeResult, make_table
from tokenlens.probes.base import (
    RANKS,
    FittedHead,
    ImageFeatures,
    ImageProbe,
    PatchFeatures,
    Probe,
    ProbeScore,
    import_extra,
    probes,
)

__all__ = [
    "RANKS",
    "RAW_PIXELS",
    "SOURCES",
    "FittedHead",
    "FittedProbe",
    "FrozenModel",
    "Heads",
    "ImageFeatures",
    "ImageProbe",
    "PatchFeatures",
    "Probe",
    "ProbeResult",
    "ProbeScore",
    "Schedule",
    "SplitFeatures",
    "extract_features",
    "hold_out",
    "import_extra",
    "load_probe",
    "make_table",
    "probe",
    "probes",
    "train_heads",
]
