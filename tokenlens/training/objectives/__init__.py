"""Training objectives, one file each, and the interface that they share."""

from tokenlens.training.objectives.base import (
    Objective,
    Progress,
    Setting,
    SingleView,
    TrainingBatch,
    Views,
    make_options,
    objectives,
)

__all__ = [
    "Objective",
    "Progress",
    "Setting",
    "SingleView",
    "TrainingBatch",
    "Views",
    "make_options",
    "objectives",
]
