"""List timm's architectures that can be analyzed, and find those that a checkpoint fits."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import timm
import torch

from tokenlens.families import families
from tokenlens.models.checkpoints import Checkpoint
from tokenlens.models.creation import WithoutInitialization, classifier_names
from tokenlens.models.fitting import FittedWeights, fit_weights

SIZES = {
    192: "tiny",
    384: "small",
    512: "medium",
    768: "base",
    1024: "large",
    1152: "so400m",
    1280: "huge",
    1408: "giant",
    1536: "giant",
    1664: "gigantic",
}
"""Channels of a ViT, and the word for it in timm's names."""


def list_architectures() -> list[str]:
    """Return the names of all architectures of timm whose class a family supports, sorted."""
    return sorted(name for module in _timm_modules() for name in timm.list_models(module=module))


def find_fitting_models(checkpoint: Checkpoint) -> dict[str, FittedWeights]:
    """Return the architectures of timm that a checkpoint fits by names and shapes, those without resizing first.

    Tried are those whose names state the patch size and the width of the checkpoint's patch embedding. Several may fit,
    because activations, normalization of images and attention's details leave no trace in names and shapes.
    """
    # The convolution (D, channels, p, p) of the patches; position embeddings and other convolutions are not square.
    kernels = {
        (tensor.shape[0], tensor.shape[2])
        for tensor in checkpoint.tensors.values()
        if tensor.ndim == 4 and tensor.shape[1] == 3 and tensor.shape[2] == tensor.shape[3] and tensor.shape[2] > 3
    }
    wanted = [(f"_{SIZES[channels]}_", f"patch{size}") for channels, size in kernels if channels in SIZES]
    found: dict[str, FittedWeights] = {}
    for name in list_architectures():
        if not any(width in name and patch in name for width, patch in wanted):
            continue
        with torch.device("meta"), WithoutInitialization():
            model = timm.create_model(name, num_classes=0)
        fitted = fit_weights(checkpoint, model, tuple(f"{head}." for head in classifier_names(model)))
        if fitted.problem is None:
            found[name] = fitted
    return dict(sorted(found.items(), key=lambda item: bool(item[1].resized)))


def _timm_modules() -> Iterator[str]:
    """Yield timm modules that contain a model class supported by a family."""
    supported = {getattr(families.get(name), "timm_class", None) for name in families.names()}
    for module in timm.models.list_modules():
        values = vars(sys.modules.get(f"timm.models.{module}", object)).values()
        classes = [cls for value in values if isinstance(value, type) for cls in value.__mro__]
        if any(f"{cls.__module__}.{cls.__qualname__}" in supported for cls in classes):
            yield module
