"""Create named models with timm: without weights, with a checkpoint or with published weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenlens.families.base import Family, as_height_width, find_family
from tokenlens.models.checkpoints import Checkpoint, read_checkpoint
from tokenlens.models.fitting import FittedWeights, describe_resizing, fit_weights
from tokenlens.models.names import GET_WEIGHTS, ModelSource, find_weights
from tokenlens.models.transformers_format import create_transformers_model, load_transformers_checkpoint
from tokenlens.models.weight_files import INDEX_NAMES, read_index
from tokenlens.specialization import TIMM_ENTRY_POINT, specialize
from tokenlens.storage.downloads import (
    UnreachableError,
    download_hub_file,
    download_url,
    find_cached_hub_file,
    find_cached_url,
)
from tokenlens.storage.hashing import file_sha256

Size = tuple[int, int] | None
"""Height and width of the images in pixels; None for the size that the model is published for."""


def create_model(source: ModelSource, size: Size, **options: Any) -> nn.Module:
    """Create a model with timm, or with Transformers, which takes no options.

    Raises:
        ValueError: if it cannot be created with these options.
    """
    if source.transformers is not None:
        return specialize_by_name(create_transformers_model(source.transformers, source.name), source)
    options = {name: _find_layer(name, value) for name, value in source.arguments.items()} | options
    if size is not None:
        options["img_size"] = size
    name = source.timm_name
    if source.specialization is not None:
        options |= {"architecture": name, "specialization": source.specialization}
        name = TIMM_ENTRY_POINT
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        if "img_size" in str(error):
            raise ValueError(f"{source.name} does not take img_size; leave it out") from error
        raise ValueError(f"timm cannot create {source.name}: {error}") from error


def _find_layer(argument: str, value: Any) -> Any:
    """Return the class of ``timm.layers`` or ``torch.nn`` that the value of ``mlp_layer`` and the like names."""
    if not isinstance(value, str) or not argument.endswith("_layer") or not value[:1].isupper():
        return value
    return getattr(timm.layers, value, None) or getattr(nn, value, value)


def specialize_by_name(module: nn.Module, source: ModelSource) -> nn.Module:
    """Specialize a model of Transformers if its name asks for it; timm's models are created specialized."""
    if source.specialization is not None:
        specialize(module, source.specialization)
    return module


def create_with_checkpoint(
    source: ModelSource, path: Path, size: Size, label: str = ""
) -> tuple[nn.Module, dict[str, Any]]:
    """Create a model and load a checkpoint into it, strictly, with timm's adaptation of names and sizes.

    Returns:
        The model and ``LoadedModel.weights``; their source starts with ``label``, or else the path.

    Raises:
        ValueError: if the checkpoint does not fit, with the keys.
    """
    if source.transformers is not None:
        create_on_meta(source, size)  # if the model cannot be created, say so before reading the weights
    checkpoint = read_checkpoint(path)
    if source.transformers is not None:
        module, fitted = load_transformers_checkpoint(source.transformers, source.name, checkpoint)
    else:
        classes, fitted = fit_checkpoint(source, checkpoint, size)
    if fitted.problem is not None:
        raise ValueError(f"checkpoint {path} does not fit {source.name}: {fitted.problem}")
    if source.transformers is not None:
        specialize_by_name(module, source)
    else:
        module = create_model(source, size, num_classes=classes)
        module.load_state_dict(fitted.tensors)
    return module, describe_weights(label or checkpoint.source, checkpoint.sha256, fitted.steps)


class WithoutInitialization(TorchFunctionMode):
    """Skip what initializes weights in place: on the meta device it has no effect, and takes most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def describe_weights(source: str, sha256: str, steps: Sequence[str]) -> dict[str, Any]:
    """Return ``LoadedModel.weights`` of weights that were loaded."""
    return {"source": ", ".join([source, *steps]), "sha256": sha256, "pretrained": True, "steps": list(steps)}


def fit_checkpoint(source: ModelSource, checkpoint: Checkpoint, size: Size) -> tuple[int, FittedWeights]:
    """Fit a checkpoint to a named model whose classifier has the checkpoint's number of classes, or is removed.

    Returns:
        The number of classes, and the fitted weights; their ``problem`` is not None if the checkpoint does not fit.
    """
    headless = create_on_meta(source, size, num_classes=0)
    heads = classifier_names(headless)
    fits = [(0, fit_weights(checkpoint, headless, tuple(f"{head}." for head in heads)))]
    shapes = [shape for name, shape in fits[0][1].left_out.items() if name in [f"{head}.weight" for head in heads]]
    counts = [shape[0] for shape in shapes if len(shape) == 2][:1]
    if fits[0][1].problem is not None and not counts:
        counts = [int(getattr(create_on_meta(source, size), "num_classes", 0))]
    # Checkpoints of OpenCLIP and OpenAI may name their head differently, and show it only to a model that has one.
    fits += [(count, fit_weights(checkpoint, create_on_meta(source, size, num_classes=count))) for count in counts]
    return min(reversed(fits), key=lambda each: each[1].misfits)


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a timm model's classifier, usually ``head``."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    return (names,) if isinstance(names, str) else tuple(names)


def create_with_published_weights(
    source: ModelSource, size: Size, family: Family | None
) -> tuple[nn.Module, dict[str, Any]]:
    """Create a model with its published weights: from its folder, the local cache, or a download.

    Returns:
        The model and ``LoadedModel.weights``.

    Raises:
        LookupError: if the model is of no known family (before a download).
        ValueError: if no weights are published, or they cannot be downloaded or loaded.
    """
    name = source.name
    if source.folder is not None:
        module, weights = create_with_checkpoint(source, find_weights(name, source.folder), size, source.label)
        return module, {**weights, "source": f"{weights['source']}, {source.training}"} if source.training else weights
    if source.repo is None and source.url is None:
        raise ValueError(
            f"no pretrained weights are published for {name}. Pass a file with --checkpoint FILE (checkpoint=…), or "
            "analyze random weights with --no-pretrained (pretrained=False)."
        )
    file = find_cached_weights(source)
    if file is None and family is None:
        find_family(create_on_meta(source, size))  # if this is not a ViT, say so before a download
    if file is None or file.name in INDEX_NAMES:
        try:
            file = download_weights(source)
        except UnreachableError as error:
            raise ValueError(f"the pretrained weights of {name} are not available: {error}. {GET_WEIGHTS}") from error
    from_where = f"hf-hub:{source.repo}/{file.name}" if source.repo else str(source.url)
    is_archive = source.custom_loader and file.suffix in (".npz", ".npy")
    if source.arguments and is_archive:
        raise ValueError(
            f"the weights of {name} are a JAX archive, which timm loads without checking that they fit these arguments "
            f"({', '.join(source.arguments)}); leave out --model-arg (model_args=…), or pass weights with --checkpoint"
        )
    if source.arguments or not source.timm_name or source.timm_name.startswith("local-dir:"):
        return create_with_checkpoint(source, file, size, from_where)
    overlay = {"file": str(file), "source": "", "custom_load": is_archive}
    try:
        module = create_model(source, size, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, OSError) as error:
        reason = shorten(" ".join(str(error).split()), 400, placeholder=" …")
        raise ValueError(f"the pretrained weights of {name} in {file} cannot be loaded: {reason}") from error
    steps = []
    if size is not None:
        steps = describe_resizing(create_on_meta(source, None).state_dict(), module.state_dict())
    return module, describe_weights(from_where, file_sha256(file), steps)


def find_cached_weights(source: ModelSource) -> Path | None:
    """Return the published file of weights, or index of shards, that is in the local cache; uses no network."""
    if source.repo:
        return find_cached_hub_file(source.repo, source.files, source.revision)
    return find_cached_url(source.url or "")


def download_weights(source: ModelSource) -> Path:
    """Download the published weights: a file, or an index with all its shards.

    Raises:
        UnreachableError: if they cannot be downloaded.
    """
    if not source.repo:
        return download_url(source.url or "")
    file = download_hub_file(source.repo, source.files, source.revision)
    if file.name in INDEX_NAMES:
        for shard in sorted(set(read_index(file).values())):
            download_hub_file(source.repo, [shard], source.revision)
    return file


def check_size(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width; raise ValueError unless both are positive."""
    try:
        size = as_height_width(img_size)
    except (TypeError, ValueError):
        size = (0, 0)
    if min(size) < 1:
        raise ValueError(f"img_size is a number of pixels or (height, width), got {img_size!r}")
    return size


def create_on_meta(source: ModelSource, size: Size, **options: Any) -> nn.Module:
    """Create a model on the meta device: 0.1 s for ViT-L, which otherwise takes 4 s."""
    with torch.device("meta"):
        return create_model(source, size, **options)
