"""Measure and change how the [CLS] token and the patch tokens of a Vision Transformer interact.

>>> import tokenlens
>>> analysis = tokenlens.analyze("vit_tiny_patch16_224", pretrained=False, limit=2)  # doctest: +SKIP
>>> analysis.plot("depth_profile", metric="cls_patch_cosine")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenlens.analysis.analysis import Analysis
    from tokenlens.analysis.analyze import analyze
    from tokenlens.analysis.record import record
    from tokenlens.comparison.compare import compare
    from tokenlens.comparison.comparison import Comparison
    from tokenlens.explorer.explore import explore
    from tokenlens.families.base import BlockTaps, Family, Tap
    from tokenlens.figures import photographs as plot
    from tokenlens.interventions import Intervention, intervene
    from tokenlens.models.check import ModelCheck, check
    from tokenlens.probes import ProbeResult, probe
    from tokenlens.recording.recording import Recording
    from tokenlens.specialization import Specialization, merge, specialize
    from tokenlens.tokens import Site, TokenLayout
    from tokenlens.training.train import train
    from tokenlens.verification import Verification, verify

_PACKAGES = {
    "Analysis": "analysis",
    "BlockTaps": "families",
    "Comparison": "comparison",
    "Family": "families",
    "Intervention": "interventions",
    "ModelCheck": "models",
    "ProbeResult": "probes",
    "Recording": "recording.recording",
    "Site": "tokens",
    "Specialization": "specialization",
    "Tap": "families",
    "TokenLayout": "tokens",
    "Verification": "verification",
    "analyze": "analysis",
    "check": "models",
    "compare": "comparison",
    "explore": "explorer",
    "intervene": "interventions",
    "merge": "specialization",
    "probe": "probes",
    "record": "analysis",
    "specialize": "specialization",
    "train": "training",
    "verify": "verification",
}

__all__ = [
    "Analysis",
    "BlockTaps",
    "Comparison",
    "Family",
    "Intervention",
    "ModelCheck",
    "ProbeResult",
    "Recording",
    "Site",
    "Specialization",
    "Tap",
    "TokenLayout",
    "Verification",
    "__version__",
    "analyze",
    "check",
    "compare",
    "explore",
    "intervene",
    "merge",
    "plot",
    "probe",
    "record",
    "specialize",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Names are looked up when they are first used, so that importing tokenlens does not import torch.
    if name == "__version__":
        from importlib.metadata import version

        return version("tokenlens-vit")
    if name == "plot":
        return importlib.import_module("tokenlens.figures.photographs")
    if name not in _PACKAGES:
        raise AttributeError(f"module 'tokenlens' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tokenlens.{_PACKAGES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
