"""Training objectives, one file each, and the contract that they share."""

from tokenlens.training.objectives.base import (
    Objective,
    Progress,
    Setting,
    TrainingBatch,
    Views,
    objectives,
    options_of,
)

__all__ = [
    "Objective",
    "Progress",
    "Setting",
    "TrainingBatch",
    "Views",
    "objectives",
    "options_of",
]
