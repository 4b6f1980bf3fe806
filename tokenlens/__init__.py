"""What the [CLS] token and the patch tokens of a Vision Transformer do to each other.

>>> import tokenlens
>>> analysis = tokenlens.analyze("vit_tiny_patch16_224", pretrained=False, limit=2)  # doctest: +SKIP
>>> analysis.plot("depth_profile", metric="cls_patch_cosine")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenlens import plot
    from tokenlens.analysis import Analysis, analyze, record
    from tokenlens.comparison import Comparison, compare
    from tokenlens.families import BlockTaps, Family, Tap
    from tokenlens.probes import ProbeResult, probe
    from tokenlens.recipes import train
    from tokenlens.recording import Recording, Site
    from tokenlens.specialization import Specialization, merge, specialize
    from tokenlens.tokens import TokenLayout
    from tokenlens.verification import Verification, verify
    from tokenlens.widgets import explore

_PLACES = {
    "Analysis": "analysis",
    "BlockTaps": "families",
    "Comparison": "comparison",
    "Family": "families",
    "ProbeResult": "probes",
    "Recording": "recording",
    "Site": "recording",
    "Specialization": "specialization",
    "Tap": "families",
    "TokenLayout": "tokens",
    "Verification": "verification",
    "analyze": "analysis",
    "compare": "comparison",
    "explore": "widgets",
    "merge": "specialization",
    "probe": "probes",
    "record": "analysis",
    "specialize": "specialization",
    "train": "recipes",
    "verify": "verification",
}

__all__ = [
    "Analysis",
    "BlockTaps",
    "Comparison",
    "Family",
    "ProbeResult",
    "Recording",
    "Site",
    "Specialization",
    "Tap",
    "TokenLayout",
    "Verification",
    "__version__",
    "analyze",
    "compare",
    "explore",
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
        return importlib.import_module("tokenlens.plot")
    if name not in _PLACES:
        raise AttributeError(f"module 'tokenlens' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tokenlens.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


importlib.import_module("tokenlens.timm_names").register()
