"""Resolve model names: the timm architecture that a name stands for, and where its weights are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.utils import HFValidationError

from tokenlens.catalog import did_you_mean
from tokenlens.models import shipped, timm_registration
from tokenlens.models.file_formats import read_json
from tokenlens.models.transformers_format import PREPROCESSING
from tokenlens.models.weight_files import CHOOSE_WEIGHTS, INDEX_NAMES, WEIGHT_NAMES, WEIGHT_SUFFIXES, find_weight_files
from tokenlens.storage.downloads import UnreachableError, download_hub_file
from tokenlens.storage.result import SETTINGS

assert timm_registration, "imported to register specialized and shipped models in timm"

FORMS = (
    "one that comes with tokenlens (tokenlens_tiny), a timm name (vit_base_patch16_224.augreg_in21k), "
    "hf-hub:owner/name, local-dir:PATH, the run folder of a training or specialized:PRESET:NAME"
)
SPECIALIZED_SUFFIX = "_specialized"
"""Suffix of the timm names that tokenlens registers for specialized models."""
GET_WEIGHTS = (
    "Download them once on a machine with network (they stay in the cache), pass a file with --checkpoint FILE "
    "(checkpoint=…), or analyze random weights with --no-pretrained (pretrained=False)."
)


@dataclass(frozen=True)
class ModelSource:
    """The architecture and the weights that a model's name stands for.

    Args:
        name: the name as the user gave it.
        timm_name: the name for ``timm.create_model``; for a hub model the folder of its snapshot in the cache; empty
            for a model of Transformers.
        transformers: folder of the configuration of a model in Transformers' format; None for a model of timm.
        repo: Hugging Face repository of the weights, with ``revision`` and the ``files`` to look for.
        revision: branch, tag or commit; None is the main branch.
        files: possible names of the file of weights, the preferred one first.
        url: address of weights that are elsewhere on the web.
        folder: folder of weights that are on this machine.
        label: name of that folder in results; empty for its path.
        custom_loader: whether timm reads the file with the model's own loader (JAX archives).
        specialization: name of the preset by which the model is specialized; None for a standard model.
        training: for the run folder of a training its recipe, seed and progress; else empty.
        arguments: arguments of the constructor, besides those of timm's configuration.
    """

    name: str
    timm_name: str
    repo: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = WEIGHT_NAMES
    url: str | None = None
    folder: Path | None = None
    label: str = ""
    custom_loader: bool = False
    specialization: str | None = None
    training: str = ""
    transformers: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def find_model_source(name: str) -> ModelSource:
    """Resolve the name of a model; for a model of the Hugging Face hub this downloads its configuration.

    Raises:
        LookupError: for an unknown name or weights tag, with the available ones.
        ValueError: for a repository or folder without the configuration of a model of timm or Transformers.
    """
    if name in shipped.list_names():
        folder = shipped.find_folder(name)
        return ModelSource(name, f"local-dir:{folder}", folder=folder, label=shipped.describe_source())
    prefix, colon, rest = name.partition(":")
    prefix = prefix.lower().replace("_", "-") if colon else ""
    if prefix == "specialized":
        return _find_specialized(name, rest)
    if prefix == "local-dir":
        return _find_folder(name, Path(rest).expanduser())
    if prefix == "hf-hub":
        repo, _, revision = rest.partition("@")
        try:
            config = download_hub_file(repo, ["config.json"], revision or None)
        except (UnreachableError, HFValidationError) as error:
            raise ValueError(
                f"the model {name!r} is not available: {error}. Download it once on a machine with network (it stays "
                "in the cache), or use a folder that timm or Transformers saved with local-dir:PATH."
            ) from error
        files = tuple(each for pair in zip(WEIGHT_NAMES, INDEX_NAMES, strict=True) for each in pair)
        source = ModelSource(name, f"local-dir:{config.parent}", repo=repo, revision=revision or None, files=files)
        if not _is_transformers(name, config):
            return source
        with suppress(UnreachableError):  # a repository need not have it
            download_hub_file(repo, [PREPROCESSING], revision or None)
        return replace(source, timm_name="", transformers=config.parent)
    folder = Path(name).expanduser()
    if folder.is_dir() and not timm.is_model(name.partition(".")[0]):
        if read_training_settings(folder) is None and not (folder / "config.json").is_file():
            raise ValueError(
                f"{name!r} is a folder with neither the {SETTINGS['training']} of a `tokenlens train` run nor a "
                "config.json of timm or Transformers; for a folder of weights alone, name the model and pass "
                f"--checkpoint {name}"
            )
        return _find_folder(name, folder)
    is_path = name.startswith(("/", "./", "../", "~")) or folder.suffix in WEIGHT_SUFFIXES
    if is_path and folder.is_file():
        raise ValueError(f"{name!r} is a file; name its model and pass --checkpoint {name}")
    if is_path:
        raise LookupError(f"there is no file or folder {name}; expected one, or {FORMS}")
    if colon or "/" in name:
        hint = "" if colon else f" For a model of the Hugging Face Hub, write hf-hub:{name}."
        raise LookupError(f"no model is called {name!r}; expected {FORMS}.{hint}")
    architecture, dot, tag = name.partition(".")
    if architecture.endswith(SPECIALIZED_SUFFIX) and timm.is_model(architecture):
        standard = architecture.removesuffix(SPECIALIZED_SUFFIX) + dot + tag
        return replace(find_model_source(standard), name=name, specialization="paper")
    return _find_registered(name)


def _find_specialized(name: str, rest: str) -> ModelSource:
    preset, _, standard = rest.partition(":")
    if not preset or not standard:
        raise LookupError(
            f"no model is called {name!r}; a specialized model is specialized:PRESET:NAME of a standard one"
        )
    source = find_model_source(standard)
    if source.specialization is not None:
        raise ValueError(f"{name!r}: {standard} is specialized already; name the standard model")
    return replace(source, name=name, specialization=preset)


def _find_registered(name: str) -> ModelSource:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models())
        raise LookupError(
            f"no model is called {name!r}.{hint} `tokenlens list models` lists the models that can be analyzed."
        )
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
        return ModelSource(name, name)
    files = (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHT_NAMES
    url = config.url if isinstance(config.url, str) else None
    return ModelSource(
        name, name, repo=config.hf_hub_id, files=files, url=url or None, custom_loader=bool(config.custom_load)
    )


def read_training_settings(folder: Path) -> dict[str, Any] | None:
    """Read the settings that a training wrote to its run folder; None for any other folder.

    Raises:
        ValueError: if the settings are damaged.
    """
    file = folder / SETTINGS["training"]
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not a JSON object") from error
    return settings if isinstance(settings, dict) and settings.get("kind") == "training" else None


def _find_folder(name: str, folder: Path) -> ModelSource:
    training = read_training_settings(folder)
    if training is not None and not (folder / "config.json").is_file():
        raise ValueError(
            f"{name!r}: the training in {folder} has not written its weights yet ({_format_progress(training)}). They "
            "are written at its end and whenever it stops cleanly (--max-minutes, Ctrl-C); run the same command again "
            "to resume"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{name!r}: {folder} holds no config.json; expected a folder saved by timm (save_for_hf) or Transformers "
            "(save_pretrained)"
        )
    if _is_transformers(name, folder / "config.json"):
        return ModelSource(name, "", folder=folder, transformers=folder)
    described = ""
    if training is not None:
        described = (
            f"trained by the recipe {training['name']}, seed {training['recipe']['seed']}, {_format_progress(training)}"
        )
    return ModelSource(name, f"local-dir:{folder}", folder=folder, training=described)


def _format_progress(training: Mapping[str, Any]) -> str:
    """Return at which step the saved model is; the training itself may be further by now."""
    step, steps = training.get("model_step", training["step"]), training["steps"]
    return f"step {step} of {steps}" + (" (unfinished)" if step < steps else "")


def _is_transformers(name: str, file: Path) -> bool:
    """Return whether a ``config.json`` is in Transformers' format, not timm's.

    Raises:
        LookupError: for an architecture that timm lacks.
        ValueError: for a file in neither format.
    """
    config = read_json(file)
    architecture = config.get("architecture")
    if architecture is None:
        if "model_type" in config:
            return True
        raise ValueError(
            f'{name!r}: its config.json has neither the "architecture" of timm\'s format nor the "model_type" of '
            "Transformers'. Load the model with its own library, and pass the module"
        )
    if not timm.is_model(str(architecture)):
        raise LookupError(f"{name!r} is a {architecture!r}, which timm {timm.__version__} does not have")
    return False


def find_weights_file(given: str | os.PathLike[str]) -> Path:
    """Return the file of weights of a file, a training's run folder, or a model that comes with tokenlens.

    Raises:
        ValueError: for the run folder of a training that has not written its weights yet.
    """
    name, path = os.fspath(given), Path(given).expanduser()
    folder = shipped.find_folder(name) if name in shipped.list_names() else path
    return find_weights(name, folder) if folder != path or read_training_settings(folder) is not None else path


def find_weights(name: str, folder: Path) -> Path:
    """Return the file of weights in the folder of a model, or the folder itself if they are in shards.

    Raises:
        ValueError: if there is none, a choice of several, or shards are missing.
    """
    files = find_weight_files(folder)
    if not files:
        raise ValueError(f"{name!r}: {folder} holds no weights; expected {' or '.join(WEIGHT_NAMES)}. {CHOOSE_WEIGHTS}")
    return files[0] if len(files) == 1 else folder
