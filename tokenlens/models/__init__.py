"""Load models by name or file, with published weights or a checkpoint."""

from tokenlens.models.checkpoints import (
    Checkpoint,
    adapt_to_timm,
    describe_mismatch,
    describe_resampling,
    read_checkpoint,
    weights_sha256,
)
from tokenlens.models.creation import create_meta_model
from tokenlens.models.loading import LoadedModel, ModelWarning, load_model
from tokenlens.models.names import ModelSource, find_model_source, find_weights_file, read_training_settings

__all__ = [
    "Checkpoint",
    "LoadedModel",
    "ModelSource",
    "ModelWarning",
    "adapt_to_timm",
    "create_meta_model",
    "describe_mismatch",
    "describe_resampling",
    "find_model_source",
    "find_weights_file",
    "load_model",
    "read_checkpoint",
    "read_training_settings",
    "weights_sha256",
]
