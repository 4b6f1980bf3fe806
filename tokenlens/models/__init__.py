"""Models by name or file, checkpoints, and the names of specialized models in timm."""

from tokenlens.models.checkpoints import Checkpoint, read_checkpoint
from tokenlens.models.loading import LoadedModel, load_model

__all__ = [
    "Checkpoint",
    "LoadedModel",
    "load_model",
    "read_checkpoint",
]
