"""What a model's name stands for: an architecture of timm's and the place its published weights are in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.utils import HFValidationError

from tokenlens.catalog import nearest
from tokenlens.models import shipped
from tokenlens.storage.downloads import UnreachableError, hub_file
from tokenlens.storage.result import SETTINGS

RUN = SETTINGS["training"]
"""What a training says of itself, in its run folder."""

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
FORMS = (
    "one that comes with tokenlens (tokenlens_tiny), a timm name (vit_base_patch16_224.augreg_in21k), "
    "hf-hub:owner/name, local-dir:PATH, the run folder of a training or specialized:PRESET:NAME"
)
TWIN = "_specialized"
"""What stands behind a timm name that tokenlens registers for the specialized model of that architecture."""
GET_WEIGHTS = (
    "Get them once on a machine with network (they are then kept in the cache), hand over a file that you have with "
    "--checkpoint FILE (checkpoint=…), or look at random weights with --no-pretrained (pretrained=False)."
)


@dataclass(frozen=True)
class Origin:
    """Where a named model is made from.

    Args:
        name: as the user gave it.
        timm_name: what ``timm.create_model`` takes; for a hub model the folder of its snapshot in the cache.
        repo: of the Hugging Face hub, where the weights are there; with ``revision`` and the ``files`` to look for.
        revision: branch, tag or commit; None is the main branch.
        files: names that the weights may have, the preferred one first.
        url: of the weights, where they are elsewhere on the web.
        folder: of the weights, where they are on this machine.
        place: what that folder is called in a result; empty for its path.
        custom: whether timm reads the file with the model's own loader (JAX archives).
        specialization: name of the preset by which the model is specialized; None for a model as it is.
        trained: for the run folder of a training: by which recipe, with which seed, and how far; else empty.
    """

    name: str
    timm_name: str
    repo: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = WEIGHT_NAMES
    url: str | None = None
    folder: Path | None = None
    place: str = ""
    custom: bool = False
    specialization: str | None = None
    trained: str = ""


def find_origin(name: str) -> Origin:
    """Where a named model is made from; for a model of the hub this fetches its configuration.

    Raises:
        LookupError: for an unknown name or weights tag, with the ones there are.
        ValueError: for a hub or a folder that does not give the configuration of a timm model.
    """
    if name in shipped.names():
        folder = shipped.folder_of(name)
        return Origin(name, f"local-dir:{folder}", folder=folder, place=shipped.origin())
    prefix, colon, rest = name.partition(":")
    prefix = prefix.lower().replace("_", "-") if colon else ""
    if prefix == "specialized":
        return _specialized_origin(name, rest)
    if prefix == "local-dir":
        return _folder_origin(name, Path(rest).expanduser())
    if prefix == "hf-hub":
        repo, _, revision = rest.partition("@")
        try:
            config = hub_file(repo, ["config.json"], revision or None)
        except (UnreachableError, HFValidationError) as error:
            raise ValueError(
                f"the model {name!r} cannot be had: {error}. Get it once on a machine with network (it is then kept in "
                "the cache), or name a folder that timm saved with local-dir:PATH."
            ) from error
        _check_config(name, config)
        return Origin(name, f"local-dir:{config.parent}", repo=repo, revision=revision or None)
    folder = Path(name).expanduser()
    if folder.is_dir() and not timm.is_model(name.partition(".")[0]):
        if training_of(folder) is None:
            raise ValueError(
                f"{name!r} is a folder, but no run of `tokenlens train` (there is no {RUN} of one in it); a model in "
                f"timm's format is read with local-dir:{name}"
            )
        return _folder_origin(name, folder)
    if colon or "/" in name:
        hint = "" if colon else f" For a model of the Hugging Face hub write hf-hub:{name}."
        raise LookupError(f"no model is called {name!r}; names are {FORMS}.{hint}")
    architecture, dot, tag = name.partition(".")
    if architecture.endswith(TWIN) and timm.is_model(architecture):
        return replace(find_origin(architecture.removesuffix(TWIN) + dot + tag), name=name, specialization="paper")
    return _registered_origin(name)


def _specialized_origin(name: str, rest: str) -> Origin:
    preset, _, standard = rest.partition(":")
    if not preset or not standard:
        raise LookupError(
            f"no model is called {name!r}; a specialized model is specialized:PRESET:NAME of a standard one"
        )
    origin = find_origin(standard)
    if origin.specialization is not None:
        raise ValueError(f"{name!r}: {standard} is specialized already; name the standard model behind it")
    return replace(origin, name=name, specialization=preset)


def _registered_origin(name: str) -> Origin:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = nearest(architecture, timm.list_models())
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise LookupError(f"no model is called {name!r}.{hint} `tokenlens list models` shows what can be analyzed.")
    renamed = timm.models.get_deprecated_models()
    if architecture in renamed:
        raise LookupError(f"timm has renamed {architecture!r} to {renamed[architecture]!r}; use that name")
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        raise LookupError(
            f"{architecture} has no weights tagged {tag!r}. Available: {', '.join(filter(None, tags)) or 'none'}."
        ) from error
    if config is None or not config.has_weights:
        return Origin(name, name)
    files = (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHT_NAMES
    url = config.url if isinstance(config.url, str) else None
    return Origin(name, name, repo=config.hf_hub_id, files=files, url=url or None, custom=bool(config.custom_load))


def training_of(folder: Path) -> dict[str, Any] | None:
    """What the run folder of a training says of itself; None for any other folder.

    Raises:
        ValueError: for a damaged one.
    """
    file = folder / RUN
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON object") from error
    return told if isinstance(told, dict) and told.get("kind") == "training" else None


def _folder_origin(name: str, folder: Path) -> Origin:
    training = training_of(folder)
    if training is not None and not (folder / "config.json").is_file():
        raise ValueError(
            f"{name!r}: the training in {folder} has not written its weights yet ({_progress(training)}). They are "
            "written at its end and whenever it stops cleanly (--max-minutes, Ctrl-C); the same command goes on"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name!r}: {folder} holds no config.json; expected a folder saved by timm (save_for_hf)")
    _check_config(name, folder / "config.json")
    trained = (
        ""
        if training is None
        else (f"trained by the recipe {training['name']}, seed {training['recipe']['seed']}, {_progress(training)}")
    )
    return Origin(name, f"local-dir:{folder}", folder=folder, trained=trained)


def _progress(training: Mapping[str, Any]) -> str:
    """How far the model that was written is; the training itself may have gone on since."""
    step, steps = training.get("model_step", training["step"]), training["steps"]
    return f"step {step} of {steps}" + (" (unfinished)" if step < steps else "")


def _check_config(name: str, file: Path) -> None:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        architecture = config.get("architecture")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{name!r}: {file} is no JSON object") from error
    if architecture is None:
        raise ValueError(
            f'{name!r} is not in timm\'s format: its config.json names no "architecture". Load a model of another '
            "library with that library and hand the module over"
        )
    if not timm.is_model(architecture):
        raise LookupError(f"{name!r} is a {architecture!r}, which timm {timm.__version__} does not have")


def weights_file(given: str | os.PathLike[str]) -> Path:
    """Where weights to start from are: a file, or that of a run folder or of a model that comes with tokenlens.

    Raises:
        ValueError: for the run folder of a training that has not written its weights yet.
    """
    name, path = os.fspath(given), Path(given).expanduser()
    folder = shipped.folder_of(name) if name in shipped.names() else path
    return weights_in(name, folder) if folder != path or training_of(folder) is not None else path


def weights_in(name: str, folder: Path) -> Path:
    """The file of weights in a model's folder."""
    for known in WEIGHT_NAMES:
        if (folder / known).is_file():
            return folder / known
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pth", ".pt"))
    if len(files) == 1:
        return files[0]
    found = f"{len(files)} files of weights ({', '.join(file.name for file in files[:8])})" if files else "no weights"
    raise ValueError(
        f"{name!r}: {folder} holds {found}; expected {' or '.join(WEIGHT_NAMES)}, or choose with --checkpoint FILE "
        "(checkpoint=…), or look at random weights with --no-pretrained (pretrained=False)."
    )
