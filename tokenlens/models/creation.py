"""Create named models with timm: without weights, with a checkpoint or with published weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tokenlens.families.base import Family, as_height_width, find_family
from tokenlens.models.checkpoints import adapt_to_timm, describe_mismatch, describe_resampling, read_checkpoint
from tokenlens.models.names import GET_WEIGHTS, ModelSource, find_model_source, find_weights
from tokenlens.specialization import TIMM_ENTRY_POINT, expand_standard_weights
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
    """Create a model with ``timm.create_model``.

    Raises:
        ValueError: if timm cannot create it with these options.
    """
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


def create_meta_model(name: str, *, img_size: int | tuple[int, int] | None = None) -> nn.Module:
    """Create the model of a name on the meta device, without memory for its weights, in eval mode.

    Raises:
        LookupError, ValueError: as ``load_model``.
    """
    return _create_on_meta(find_model_source(name), None if img_size is None else check_size(img_size)).eval()


def create_with_checkpoint(
    source: ModelSource, path: Path, size: Size, label: str = ""
) -> tuple[nn.Module, dict[str, Any]]:
    """Create a model and load a checkpoint into it, strictly, with timm's adaptation of names and sizes.

    Returns:
        The model and ``LoadedModel.weights``; their source is ``label``, or else the path.

    Raises:
        ValueError: if the checkpoint does not fit, with the keys.
    """
    checkpoint = read_checkpoint(path)
    plain = _create_on_meta(source, size)
    published = int(getattr(plain, "num_classes", 0))
    head = _count_classes(checkpoint.tensors, plain)
    mismatches = []
    # Checkpoints of OpenCLIP and OpenAI may name their head differently: then try the published number of classes too.
    for classes in dict.fromkeys([head] if head else [0, published]):
        meta = _create_on_meta(source, size, num_classes=classes)
        adapted = expand_standard_weights(adapt_to_timm(checkpoint.tensors, meta), meta)
        mismatch = describe_mismatch(adapted, meta)
        if mismatch is not None:
            mismatches.append(mismatch)
            continue
        overlay = {"state_dict": checkpoint.tensors, "num_classes": classes, "source": ""}
        try:
            module = create_model(source, size, num_classes=classes, pretrained=True, pretrained_cfg_overlay=overlay)
        except RuntimeError as error:
            raise ValueError(f"checkpoint {path} does not fit {source.name}: {error}") from error
        vars(module)["pretrained_cfg"].pop("state_dict")  # timm would keep a copy of all weights there
        from_where = ", ".join([label or checkpoint.source, *describe_resampling(checkpoint.tensors, adapted)])
        return module, {"source": from_where, "sha256": checkpoint.sha256, "pretrained": True}
    raise ValueError(f"checkpoint {path} does not fit {source.name}: {min(mismatches, key=len)}")


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
    if source.repo:
        file = find_cached_hub_file(source.repo, source.files, source.revision)
    else:
        file = find_cached_url(source.url or "")
    if file is None:
        if family is None:
            find_family(_create_on_meta(source, size))  # if this is not a ViT, say so before a download
        try:
            file = (
                download_hub_file(source.repo, source.files, source.revision)
                if source.repo
                else download_url(source.url or "")
            )
        except UnreachableError as error:
            raise ValueError(f"the pretrained weights of {name} are not available: {error}. {GET_WEIGHTS}") from error
    from_where = f"hf-hub:{source.repo}/{file.name}" if source.repo else str(source.url)
    if source.timm_name.startswith("local-dir:"):
        module, weights = create_with_checkpoint(source, file, size)
        return module, {**weights, "source": from_where}
    overlay = {"file": str(file), "source": "", "custom_load": source.custom_loader and file.suffix in (".npz", ".npy")}
    try:
        module = create_model(source, size, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"the pretrained weights of {name} in {file} cannot be loaded: {reason}") from error
    return module, {"source": from_where, "sha256": file_sha256(file), "pretrained": True}


def check_size(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width; raise ValueError unless both are positive."""
    try:
        size = as_height_width(img_size)
    except (TypeError, ValueError):
        size = (0, 0)
    if min(size) < 1:
        raise ValueError(f"img_size is a number of pixels or (height, width), got {img_size!r}")
    return size


def _create_on_meta(source: ModelSource, size: Size, **options: Any) -> nn.Module:
    """Create a model on the meta device: 0.1 s for ViT-L, which otherwise takes 4 s."""
    with torch.device("meta"):
        return create_model(source, size, **options)


def _count_classes(tensors: Mapping[str, Tensor], model: nn.Module) -> int:
    """Return the number of classes of a checkpoint's classifier; 0 if it has none."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    for name in [names] if isinstance(names, str) else names:
        weight = tensors.get(f"{name}.weight")
        if weight is not None and weight.ndim == 2:
            return int(weight.shape[0])
    return 0
