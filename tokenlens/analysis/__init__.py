"""Run a model over images once, measure how its tokens differ, and judge the findings on it."""

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.analyze import analyze
from tokenlens.analysis.findings import Finding, judge
from tokenlens.analysis.finite import NonFiniteActivation
from tokenlens.analysis.overview import overview
from tokenlens.analysis.record import record

__all__ = ["Analysis", "Finding", "NonFiniteActivation", "analyze", "judge", "overview", "record"]
