"""Load models by name or file, with published weights or a checkpoint."""

from tokenlens.models.architectures import list_architectures
from tokenlens.models.check import ModelCheck, ModelDescription, check, describe_model
from tokenlens.models.checkpoints import Checkpoint, read_checkpoint, weights_sha256
from tokenlens.models.fitting import FittedWeights, fit_weights
from tokenlens.models.loading import LoadedModel, ModelWarning, create_meta_model, load_model
from tokenlens.models.names import ModelSource, find_model_source, find_weights_file, read_training_settings

__all__ = [
    "Checkpoint",
    "FittedWeights",
    "LoadedModel",
    "ModelCheck",
    "ModelDescription",
    "ModelSource",
    "ModelWarning",
    "check",
    "create_meta_model",
    "describe_model",
    "find_model_source",
    "find_weights_file",
    "fit_weights",
    "list_architectures",
    "load_model",
    "read_checkpoint",
    "read_training_settings",
    "weights_sha256",
]
