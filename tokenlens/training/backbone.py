"""The model that is trained: made from a recipe, started from weights, and saved so that timm rebuilds it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn

from tokenlens.models.checkpoints import Checkpoint, misfit, native_names, resampled
from tokenlens.models.names import find_origin
from tokenlens.specialization import as_specialization, in_two_sets, plan_of, specialize
from tokenlens.specialization import save as save_specialized
from tokenlens.training.recipe import Recipe


def make_backbone(recipe: Recipe, classes: int, start: Checkpoint | None = None) -> nn.Module:
    """The recipe's model with weights from its seed: made as the standard model, then specialized.

    So the standard and the specialized model of one seed are the same function, and their heads start alike.

    Args:
        classes: outputs of its classifier; 0 for none.
        start: weights to start from instead. A classifier with another number of classes is left out of them.

    Raises:
        LookupError: for a model or specialization that there is not.
        ValueError: for options that the model does not take, or weights that do not fit.
    """
    origin = find_origin(recipe.model)
    if origin.specialization is not None or origin.folder is not None:
        raise ValueError(
            f"model={recipe.model!r}: expected the name of a standard model of timm; it is specialized by "
            "specialization=…, and started from weights by a checkpoint"
        )
    options = {"img_size": recipe.image_size, **recipe.model_options}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        try:
            model: nn.Module = timm.create_model(origin.timm_name, pretrained=False, num_classes=classes, **options)
        except TypeError as error:
            raise ValueError(f"{recipe.model} cannot be made with {options}: {error}") from error
    if recipe.specialization is not None:
        specialize(model, as_specialization(recipe.specialization))
    if start is not None:
        load_start(model, start)
    return model


def load_start(model: nn.Module, start: Checkpoint) -> dict[str, Any]:
    """Load weights into a fresh model, standard or specialized; names and sizes are adapted as timm does it.

    Returns:
        ``source``, ``sha256``, and ``left_out``: the names of what was left at its random start.

    Raises:
        ValueError: if anything but the classifier does not fit, with the keys.
    """
    wanted = model.state_dict()
    adapted = in_two_sets(native_names(start.tensors, model), model)
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    heads = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    adapted = {
        name: tensor
        for name, tensor in adapted.items()
        if not (name.startswith(heads) and (name not in wanted or wanted[name].shape != tensor.shape))
    }
    left_out = sorted(name for name in wanted if name.startswith(heads) and name not in adapted)
    adapted |= {name: wanted[name] for name in left_out}
    problem = misfit(adapted, model)
    if problem is not None:
        raise ValueError(f"checkpoint {start.source} does not fit the model: {problem}")
    model.load_state_dict(adapted)
    source = ", ".join([start.source, *resampled(start.tensors, adapted)])
    return {"source": source, "sha256": start.sha256, "left_out": left_out}


def save_backbone(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write ``config.json`` and ``model.safetensors`` in timm's format; ``local-dir:FOLDER`` then names the model.

    The weights are written first elsewhere and then moved, so that an interrupt leaves no half file.

    Returns:
        The file of weights.
    """
    if plan_of(model) is not None:
        return save_specialized(model, folder)
    folder = Path(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        save_for_hf(model, temporary, safe_serialization=True)
        for name in ("model.safetensors", "config.json"):
            shutil.move(Path(temporary) / name, folder / name)
    return folder / "model.safetensors"
