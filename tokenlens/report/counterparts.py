"""Models to compare with one that comes with tokenlens: its untrained twin, and DINOv2."""

from __future__ import annotations

from tokenlens.analysis.analysis import Analysis
from tokenlens.models import shipped

TEACHER = "vit_small_patch14_dinov2"


def counterparts(analysis: Analysis) -> list[tuple[str, str]]:
    """Return the arguments behind the run in ``tokenlens compare RUN …``, each with a name; none for other models.

    Images, their number and size are those of the run.
    """
    if analysis.model not in shipped.list_names():
        return []
    twin = (f"{analysis.model} --no-pretrained", "the same model with random weights")
    trained = (analysis.model, "the same model with its weights")
    return [trained if analysis.untrained else twin, (TEACHER, "DINOv2 ViT-S/14, which it is made from")]
