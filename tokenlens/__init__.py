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
    from tokenlens.recording import Recording, Site
    from tokenlens.specialization import Specialization, merge, specialize
    from tokenlens.tokens import TokenLayout
    from tokenlens.widgets import explore

_PLACES = {
    "Analysis": "analysis",
    "BlockTaps": "families",
    "Comparison": "comparison",
    "Family": "families",
    "Recording": "recording",
    "Site": "recording",
    "Specialization": "specialization",
    "Tap": "families",
    "TokenLayout": "tokens",
    "analyze": "analysis",
    "compare": "comparison",
    "explore": "widgets",
    "merge": "specialization",
    "record": "analysis",
    "specialize": "specialization",
}

__all__ = [
    "Analysis", "BlockTaps", "Comparison", "Family", "Recording", "Site", "Specialization", "Tap", "TokenLayout",
    "__version__", "analyze", "compare", "explore", "merge", "plot", "record", "specialize",
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
