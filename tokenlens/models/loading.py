"""Load a model by name, path or module, with its image size and preprocessing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from tokenlens.families import Family, FoundViT, find_vit, image_size_of
from tokenlens.models.arguments import as_plain, describe_arguments, with_arguments
from tokenlens.models.checkpoints import weights_sha256
from tokenlens.models.creation import (
    check_size,
    create_model,
    create_on_meta,
    create_with_checkpoint,
    create_with_published_weights,
)
from tokenlens.models.names import FORMS, find_model_source


class ModelWarning(UserWarning):
    """A remark on where in a wrapper the model was found."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its family, image size, preprocessing and the source of its weights.

    Args:
        module: the model; in eval mode if it was loaded by name. A module that was passed in keeps its mode.
        name: the name as it was given; the class name of a module that was passed in.
        family: the family that the model belongs to.
        image_size: (height, width) in pixels of the images that the model takes.
        data_config: ``input_size`` (channels, height, width), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and
            ``crop_mode``; and ``assumed`` if the model states no preprocessing.
        weights: ``source``, ``sha256`` (of the checkpoint file, or else of the state dict), ``pretrained`` (bool) and
            ``steps`` (a sentence for each thing that was unwrapped, renamed, resized or left out).
        untrained: whether the weights are random.
        note: where in which wrapper the model was found; empty if it was not inside another module.
        model_args: arguments of the constructor that the user gave.
    """

    module: nn.Module
    name: str
    family: Family
    image_size: tuple[int, int]
    data_config: dict[str, Any]
    weights: dict[str, Any]
    untrained: bool
    note: str = ""
    model_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """The number of channels of the images that the model takes, 3 for photographs."""
        return self.family.channels(self.module)

    @property
    def device(self) -> torch.device:
        """The device of the module's parameters."""
        tensor = next(self.module.parameters(), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Return timm's evaluation transform from an RGB image to (3, height, width), for the model's image size.

        Raises:
            ValueError: if the model does not take images of 3 channels.
        """
        if self.channels != 3:
            raise ValueError(
                f"this {self.name} takes images of {self.channels} channels, but photographs have 3; pass preprocessed "
                f"images as a tensor (N, {self.channels}, height, width) or a DataLoader of such tensors"
            )
        config = {key: value for key, value in self.data_config.items() if key != "assumed"}
        transform: Callable[[Image.Image], Tensor] = create_transform(**config, is_training=False)
        return transform


def load_model(
    model: str | nn.Module,
    *,
    pretrained: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    img_size: int | tuple[int, int] | None = None,
    model_args: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    family: Family | None = None,
) -> LoadedModel:
    """Load a model by name, or wrap a module.

    Weights that are in the local cache are used without asking for a newer version.

    Args:
        model: the name of a model that comes with tokenlens (``tokenlens_tiny``), a timm name with or without a
            weights tag, ``hf-hub:owner/name[@revision]`` or ``local-dir:PATH`` (in the format of timm or Transformers),
            the path of such a folder or of the run folder of a training, ``specialized:PRESET:NAME`` of one of these,
            or an ``nn.Module`` of any family, alone or as the only Vision Transformer inside a wrapper.
        pretrained: load the published weights. ``False`` gives random weights from ``seed`` and marks the model as
            untrained; for a module it declares that its weights are random.
        checkpoint: weights to load strictly instead of the published ones: a file, a folder of shards, or their index.
            The model is found under whatever the file wraps it in. Position embeddings of another grid are resampled as
            in timm, and the classifier gets the checkpoint's number of classes (or is removed).
        img_size: pixels, or (height, width); by default the size that the model is published for.
        model_args: arguments of the constructor, for models of timm: ``{"reg_tokens": 4, "global_pool": "avg"}``. Where
            it takes a class, a name stands for one of ``timm.layers`` or ``torch.nn``.
        device: ``"auto"`` is cuda, else mps, else cpu; a module stays where it is.
        seed: seed of the random weights; the global random state is not changed.
        family: the family of a model that tokenlens does not know.

    Raises:
        LookupError: for an unknown name (with similar ones), a model of no known family, and a wrapper of several.
        ValueError: for weights on the meta device or that cannot be downloaded (which are never replaced by random
            ones), a checkpoint that does not fit (with the keys), an argument that the constructor does not have (with
            those it has), and an invalid size or device.
    """
    size = None if img_size is None else check_size(img_size)
    if checkpoint is not None and not pretrained:
        raise ValueError(
            "a checkpoint and random weights exclude each other: leave out --checkpoint (checkpoint=…) or "
            "--no-pretrained (pretrained=False)"
        )
    weights: dict[str, Any]
    if isinstance(model, nn.Module):
        module, name, target = model, type(model).__qualname__, None if device == "auto" else find_device(device)
        if checkpoint is not None:
            raise ValueError(
                f"a checkpoint needs the name of a model, but a {name} module was passed; load the weights into it "
                "yourself"
            )
        if model_args:
            raise ValueError(
                f"model_args needs the name of a model, but a {name} module was passed; create it with them"
            )
        found = find_vit(module, family)
        module, name = found.module, type(found.module).__qualname__
        _check_materialized(module)
        weights = {
            "source": "module as handed over",
            "sha256": weights_sha256(module),
            "pretrained": pretrained,
            "steps": [],
        }
    elif isinstance(model, str):
        name, target = model, find_device(device)
        # Models are created on the CPU, whatever the device; the caller's random state is restored.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            source = with_arguments(find_model_source(name), model_args)
            if checkpoint is not None:
                module, weights = create_with_checkpoint(source, Path(checkpoint), size)
            elif pretrained:
                module, weights = create_with_published_weights(source, size, family)
            else:
                module, label = create_model(source, size), f"random initialisation, seed {seed}"
                weights = {"source": label, "sha256": weights_sha256(module), "pretrained": False, "steps": []}
        if model_args:
            given = f"created {describe_arguments(model_args)}"
            weights |= {"source": f"{weights['source']}, {given}", "steps": [given, *weights["steps"]]}
        found = find_vit(module.eval(), family)
        module = found.module
    else:
        raise ValueError(f"a model is a name or an nn.Module, got {type(model).__qualname__}; a name is {FORMS}")
    family = found.family
    if found.note:
        warnings.warn(found.note, ModelWarning, stacklevel=2)
    image_size = size or image_size_of(module) or ((224, 224) if isinstance(model, str) else None)
    if image_size is None:
        raise ValueError(f"the {name} does not define its image size; pass img_size=…")
    family.layout(module, image_size)
    return LoadedModel(
        module=module if target is None else module.to(target),
        name=name,
        family=family,
        image_size=image_size,
        data_config=_resolve_data_config(found, image_size),
        weights=weights,
        untrained=not weights["pretrained"],
        note=found.note,
        model_args=as_plain(model_args or {}),
    )


def create_meta_model(
    name: str,
    *,
    img_size: int | tuple[int, int] | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Create the model of a name on the meta device, without memory for its weights, in eval mode.

    Raises:
        LookupError, ValueError: as ``load_model``.
    """
    size = None if img_size is None else check_size(img_size)
    return create_on_meta(with_arguments(find_model_source(name), model_args), size).eval()


def _check_materialized(module: nn.Module) -> None:
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise ValueError(
            f"weights of this {type(module).__qualname__} are on the meta device, which holds no values; load them "
            "(model.load_state_dict(weights, assign=True)) or create the model on the CPU or a GPU"
        )


def _resolve_data_config(found: FoundViT, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return timm's data configuration for this image size; by itself, timm ignores ``img_size`` of DINOv2."""
    published = dict(found.preprocessing)
    channels = found.family.channels(found.module)
    config = resolve_data_config({"input_size": (channels, *image_size)}, pretrained_cfg=published, model=found.module)
    if channels != 3:  # no photographs, so nothing is normalized
        return config | {"mean": (0.0,) * channels, "std": (1.0,) * channels, "assumed": "preprocessed images"}
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    if not published:
        config["assumed"] = "ImageNet defaults"
    return config


def find_device(device: str | torch.device) -> torch.device:
    """Return a device of this machine; ``"auto"`` is cuda, else mps, else cpu.

    Raises:
        ValueError: for an unknown device, or one that this machine lacks.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if device == "auto":
        return torch.device(available[0])
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"no device is called {device!r}; available here: auto, {', '.join(available)}") from error
    if wanted.type not in available or (wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"no {str(device)!r} on this machine; available here: auto, {', '.join(available)}")
    return wanted
