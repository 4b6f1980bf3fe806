"""Save models that timm can rebuild: weights, and a configuration that names the specialization."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from torch import nn

from tokenlens.specialization._plan import get_plan
from tokenlens.specialization._specialization import Specialization

TIMM_ENTRY_POINT = "specialized_vit"
"""The timm name of any specialized model; ``config.json`` of a saved one has it as its architecture."""


def save(model: nn.Module, folder: str | os.PathLike[str], name: str = "model.safetensors") -> Path:
    """Write a specialized model's weights and ``config.json``, in the format of timm's ``save_for_hf``.

    ``tokenlens`` loads the model as ``local-dir:FOLDER``. After ``import tokenlens.models.timm_registration`` so does
    ``timm.create_model("local-dir:FOLDER", pretrained=True)``, and ``hf-hub:`` after an upload;
    ``timm.models.push_to_hf_hub(model, …)`` writes the same files.

    Args:
        model: a specialized model that timm created.
        folder: where to write; created if it does not exist.
        name: name of the file of weights.

    Returns:
        The file of weights.

    Raises:
        ValueError: if the model is not specialized, or was not created by timm.
    """
    if get_plan(model) is None:
        raise ValueError(f"this {type(model).__qualname__} is not specialized; specialize it first")
    if "specialized" not in (getattr(model, "pretrained_cfg", None) or {}):
        raise ValueError(
            f"this {type(model).__qualname__} was not made by timm.create_model, so no configuration can rebuild it; "
            "save its state dict, and load that into the standard model after specialize()"
        )
    return save_timm_folder(model, folder, name)


def save_timm_folder(model: nn.Module, folder: str | os.PathLike[str], name: str = "model.safetensors") -> Path:
    """Write ``config.json`` and the weights of a standard or specialized timm model; return the file of weights.

    Both files are written to a temporary folder and then moved, so an interrupt leaves no incomplete file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        save_for_hf(model, temporary, safe_serialization=True)
        shutil.move(Path(temporary) / "model.safetensors", folder / name)
        shutil.move(Path(temporary) / "config.json", folder / "config.json")
    return folder / name


def describe_for_timm(model: nn.Module, specialization: Specialization) -> None:
    """Make timm's ``save_for_hf`` and ``push_to_hf_hub`` write a configuration that rebuilds the specialized model."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping) and timm.is_model(config.get("architecture") or ""):
        saved = {"architecture": config["architecture"], "specialization": specialization.to_dict()}
        _set_config(model, {**config, "architecture": TIMM_ENTRY_POINT, "specialized": saved})


def describe_as_standard(model: nn.Module) -> None:
    """Restore the configuration of the standard model."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping) and "specialized" in config:
        plain = {key: value for key, value in config.items() if key != "specialized"}
        _set_config(model, plain | {"architecture": config["specialized"]["architecture"]})


def _set_config(model: Any, config: dict[str, Any]) -> None:
    model.pretrained_cfg = model.default_cfg = config
