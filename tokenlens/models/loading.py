"""A model by name, path or module: its weights, the size of its images and the transform that prepares them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from tokenlens.families.base import Family, as_pair, find_family, image_size_of
from tokenlens.models.checkpoints import misfit, native_names, read_checkpoint, resampled, weights_sha256
from tokenlens.models.names import FORMS, GET_WEIGHTS, Origin, find_origin, weights_in
from tokenlens.specialization import GENERIC, in_two_sets
from tokenlens.storage.downloads import UnreachableError, cached_hub_file, cached_url_file, hub_file, url_file
from tokenlens.storage.hashing import file_sha256


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be looked at, and what has to be known about it.

    Args:
        module: the model; one that was loaded by name is in eval mode. A module that was handed over keeps its mode.
        name: full name as it was given; for a module its class name.
        family: which knows the module's inside.
        image_size: (height, width) in pixels of the images it takes.
        data_config: ``input_size`` (3, height, width), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and
            ``crop_mode``; and ``stated``, where they are an assumption.
        weights: ``source``, ``sha256`` (of the checkpoint's file, else of the state dict's names and bytes) and
            ``pretrained`` (bool).
        untrained: whether the weights are random.
    """

    module: nn.Module
    name: str
    family: Family
    image_size: tuple[int, int]
    data_config: dict[str, Any]
    weights: dict[str, Any]
    untrained: bool

    @property
    def device(self) -> torch.device:
        """Where the module's parameters are."""
        return _device_of(self.module)

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """timm's evaluation transform, RGB image → (3, height, width), for the size the model was really made with."""
        config = {key: value for key, value in self.data_config.items() if key != "stated"}
        transform: Callable[[Image.Image], Tensor] = create_transform(**config, is_training=False)
        return transform


def load_model(
    model: str | nn.Module,
    *,
    pretrained: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    img_size: int | tuple[int, int] | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    family: Family | None = None,
) -> LoadedModel:
    """Load a model by name, or take a module as it is.

    Args:
        model: the name of a model that comes with tokenlens (``tokenlens_tiny``), a timm name with or without a
            weights tag, ``hf-hub:owner/name[@revision]`` or ``local-dir:PATH`` (both in timm's format), the run folder
            of a training, ``specialized:PRESET:NAME`` of one of these, or an ``nn.Module`` of any family.
        pretrained: load the published weights. ``False`` gives random weights from ``seed`` and marks the model as
            untrained; for a module it says that the module's own weights are random.
        checkpoint: file of weights to load instead of the published ones, strictly; position embeddings of another
            grid are resampled as timm does it. A checkpoint without a classifier makes a model without one, and one
            with another number of classes a model with that number.
        img_size: pixels, or (height, width); by default the size the model is published for.
        device: ``"auto"`` is cuda, then mps, then cpu; a module stays where it is.
        seed: of the random weights; the global random state is left alone.
        family: what knows the inside of a model that tokenlens does not know.

    Weights that are in the local cache are taken from there without asking the hub for a newer version.

    Raises:
        LookupError: for an unknown name (with the nearest ones) and a model that no family owns.
        ValueError: weights out of reach (never random ones instead), a checkpoint that does not fit (with the keys), a
            size or a device that will not do.
    """
    size = None if img_size is None else _checked_size(img_size)
    if isinstance(model, nn.Module):
        return _adopt(model, pretrained=pretrained, checkpoint=checkpoint, size=size, device=device, family=family)
    if not isinstance(model, str):
        raise ValueError(f"a model is a name or an nn.Module, got {type(model).__qualname__}; names are {FORMS}")
    target = _device(device)
    with _seeded(seed):
        origin = find_origin(model)
        if checkpoint is not None:
            module, weights = _with_checkpoint(origin, Path(checkpoint), size)
        elif pretrained:
            module, weights = _with_published_weights(origin, size, family)
        else:
            module = _create(origin, size)
            weights = {
                "source": f"random initialisation, seed {seed}",
                "sha256": weights_sha256(module),
                "pretrained": False,
            }
    module.eval()
    family = family or find_family(module)
    image_size = size or image_size_of(module) or (224, 224)
    family.layout(module, image_size)
    return LoadedModel(
        module=module.to(target),
        name=model,
        family=family,
        image_size=image_size,
        data_config=_data_config(module, image_size),
        weights=weights,
        untrained=not weights["pretrained"],
    )


def sketch_model(name: str, *, img_size: int | tuple[int, int] | None = None) -> nn.Module:
    """The model of a name without its weights and without memory for them (on the meta device), in eval mode.

    Raises:
        LookupError, ValueError: as ``load_model``.
    """
    return _sketch(find_origin(name), None if img_size is None else _checked_size(img_size)).eval()


def _adopt(
    module: nn.Module,
    *,
    pretrained: bool,
    checkpoint: str | os.PathLike[str] | None,
    size: tuple[int, int] | None,
    device: str | torch.device,
    family: Family | None,
) -> LoadedModel:
    name = type(module).__qualname__
    if checkpoint is not None:
        raise ValueError(
            f"a checkpoint goes with a model's name, but a {name} was handed over; load the weights into it yourself"
        )
    family = family or find_family(module)
    image_size = size or image_size_of(module)
    if image_size is None:
        raise ValueError(f"the {name} does not say what size of images it takes; hand over img_size=…")
    family.layout(module, image_size)
    if device != "auto":
        module.to(_device(device))
    weights = {"source": "module as handed over", "sha256": weights_sha256(module), "pretrained": pretrained}
    return LoadedModel(
        module=module,
        name=name,
        family=family,
        image_size=image_size,
        data_config=_data_config(module, image_size),
        weights=weights,
        untrained=not pretrained,
    )


def _create(origin: Origin, size: tuple[int, int] | None, **options: Any) -> nn.Module:
    """``timm.create_model``, its refusals as ValueError."""
    if size is not None:
        options["img_size"] = size
    name = origin.timm_name
    if origin.specialization is not None:
        options |= {"architecture": name, "specialization": origin.specialization}
        name = GENERIC
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        if "img_size" in str(error):
            raise ValueError(f"{origin.name} does not take img_size; leave it out") from error
        raise ValueError(f"timm cannot make {origin.name}: {error}") from error


def _sketch(origin: Origin, size: tuple[int, int] | None, **options: Any) -> nn.Module:
    """The model without memory for its weights: 0.1 s where ViT-L takes 4 s."""
    with torch.device("meta"):
        return _create(origin, size, **options)


def _with_checkpoint(
    origin: Origin, path: Path, size: tuple[int, int] | None, place: str = ""
) -> tuple[nn.Module, dict[str, Any]]:
    """A model with the weights of a file, through timm's own adaptation of names and sizes, strictly.

    Its source is the path, or what the place is called instead.
    """
    checkpoint = read_checkpoint(path)
    plain = _sketch(origin, size)
    published = int(getattr(plain, "num_classes", 0))
    head = _classes(checkpoint.tensors, plain)
    problems = []
    # A foreign checkpoint (OpenCLIP, OpenAI) may have its head under a name of its own: then try the published number.
    for classes in dict.fromkeys([head] if head else [0, published]):
        sketch = _sketch(origin, size, num_classes=classes)
        adapted = in_two_sets(native_names(checkpoint.tensors, sketch), sketch)
        problem = misfit(adapted, sketch)
        if problem is not None:
            problems.append(problem)
            continue
        overlay = {"state_dict": checkpoint.tensors, "num_classes": classes, "source": ""}
        try:
            module = _create(origin, size, num_classes=classes, pretrained=True, pretrained_cfg_overlay=overlay)
        except RuntimeError as error:
            raise ValueError(f"checkpoint {path} does not fit {origin.name}: {error}") from error
        vars(module)["pretrained_cfg"].pop("state_dict")  # timm would keep a copy of all weights there
        source = ", ".join([place or checkpoint.source, *resampled(checkpoint.tensors, adapted)])
        return module, {"source": source, "sha256": checkpoint.sha256, "pretrained": True}
    raise ValueError(f"checkpoint {path} does not fit {origin.name}: {min(problems, key=len)}")


def _classes(tensors: Mapping[str, Tensor], model: nn.Module) -> int:
    """How many classes the classifier of a checkpoint tells apart; 0 where it has none."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    for name in [names] if isinstance(names, str) else names:
        weight = tensors.get(f"{name}.weight")
        if weight is not None and weight.ndim == 2:
            return int(weight.shape[0])
    return 0


def _with_published_weights(
    origin: Origin, size: tuple[int, int] | None, family: Family | None
) -> tuple[nn.Module, dict[str, Any]]:
    name = origin.name
    if origin.folder is not None:
        module, weights = _with_checkpoint(origin, weights_in(name, origin.folder), size, origin.place)
        return module, {**weights, "source": f"{weights['source']}, {origin.trained}"} if origin.trained else weights
    if origin.repo is None and origin.url is None:
        raise ValueError(
            f"no pretrained weights are published for {name}. Hand over a file with --checkpoint FILE (checkpoint=…), "
            "or look at random weights with --no-pretrained (pretrained=False)."
        )
    if origin.repo:
        found = cached_hub_file(origin.repo, origin.files, origin.revision)
    else:
        found = cached_url_file(origin.url or "")
    if found is None:
        if family is None:
            find_family(_sketch(origin, size))  # not a ViT: say so before anything is downloaded
        try:
            found = hub_file(origin.repo, origin.files, origin.revision) if origin.repo else url_file(origin.url or "")
        except UnreachableError as error:
            raise ValueError(f"the pretrained weights of {name} cannot be had: {error}. {GET_WEIGHTS}") from error
    place = f"hf-hub:{origin.repo}/{found.name}" if origin.repo else str(origin.url)
    if origin.timm_name.startswith("local-dir:"):
        module, weights = _with_checkpoint(origin, found, size)
        return module, {**weights, "source": place}
    overlay = {"file": str(found), "source": "", "custom_load": origin.custom and found.suffix in (".npz", ".npy")}
    try:
        module = _create(origin, size, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"the pretrained weights of {name} in {found} cannot be loaded: {reason}") from error
    return module, {"source": place, "sha256": file_sha256(found), "pretrained": True}


def _data_config(module: nn.Module, image_size: tuple[int, int]) -> dict[str, Any]:
    """What timm resolves for the model, at the size in use: timm resolves 518 for a DINOv2 made with img_size=224."""
    published = getattr(module, "pretrained_cfg", None) or {}
    config = resolve_data_config({"input_size": (3, *image_size)}, pretrained_cfg=published, model=module)
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    if not published:
        config["stated"] = "assumed ImageNet defaults"
    return config


def _device_of(module: nn.Module) -> torch.device:
    tensor = next(module.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _device(device: str | torch.device) -> torch.device:
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


def _checked_size(img_size: int | tuple[int, int]) -> tuple[int, int]:
    try:
        size = as_pair(img_size)
    except (TypeError, ValueError):
        size = (0, 0)
    if min(size) < 1:
        raise ValueError(f"img_size is a number of pixels or (height, width), got {img_size!r}")
    return size


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Models are made on the CPU: seed its generator alone, and put the caller's state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
