"""Run a model over images once and measure how its tokens differ; the findings on one model."""

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.analyze import NonFiniteActivation, analyze
from tokenlens.analysis.findings import Finding, judge
from tokenlens.analysis.overview import headlines
from tokenlens.analysis.record import record

__all__ = [
    "Analysis",
    "Finding",
    "NonFiniteActivation",
    "analyze",
    "headlines",
    "judge",
    "record",
]
