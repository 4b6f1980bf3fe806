"""How much a frozen model's features tell: a small head on them, trained and tested; one file per probe.

docs/probes.md has the protocols, docs/add-a-probe.md a probe of one's own.
"""

from tokenlens.probes._features import RAW_PIXELS
from tokenlens.probes._probe import SOURCES, probe, probes
from tokenlens.probes._result import ProbeResult, table_of
from tokenlens.probes.base import RANKS, Grids, ImageProbe, Judgement, Predictions, Probe, Vectors, package

__all__ = [
    "RANKS",
    "RAW_PIXELS",
    "SOURCES",
    "Grids",
    "ImageProbe",
    "Judgement",
    "Predictions",
    "Probe",
    "ProbeResult",
    "Vectors",
    "package",
    "probe",
    "probes",
    "table_of",
]
