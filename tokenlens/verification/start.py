"""The weights that every training of a verification starts from, kept in its folder.

They are read once from a file, a run folder or a model of any name, loaded into the recipe's standard model, and saved
as that model. So all trainings start from one file, also where the run or the hub is gone later, and what is probed and
analyzed as the start is the very function that standard and specialized models begin with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from tokenlens.models.checkpoints import Checkpoint, read_checkpoint
from tokenlens.models.loading import load_model
from tokenlens.storage.run_folder import MANIFEST, writing
from tokenlens.training.backbone import load_start, make_backbone, save_backbone
from tokenlens.training.objectives.base import objectives, options_of
from tokenlens.training.recipe import Recipe


def find_start(given: str) -> Checkpoint:
    """Weights to start from.

    Args:
        given: a file of weights, the run folder of a training, or a name that ``tokenlens.models.loading.load_model`` takes.

    Raises:
        LookupError: for a name that there is not.
        ValueError: for weights that are not there or cannot be read.
    """
    file = Path(given).expanduser()
    if file.is_file():
        return read_checkpoint(file)
    loaded = load_model(given, device="cpu")
    return Checkpoint(dict(loaded.module.state_dict()), loaded.weights["source"], loaded.weights["sha256"])


def started_model(recipe: Recipe, classes: Sequence[str], start: Checkpoint, given: str) -> nn.Module:
    """The recipe's standard model with these weights.

    It keeps the start's classifier where a training of that recipe does, and has none otherwise.

    Args:
        recipe: of the trainings.
        classes: of the images that they are on.
        start: of ``find_start``.
        given: how the user called it.

    Raises:
        ValueError: if the weights do not fit.
    """
    kind = objectives.get(recipe.objective)
    options = options_of(recipe.objective, recipe.objective_options)
    standard = replace(recipe, specialization=None)
    outputs = kind.classes(options, tuple(classes))
    model = make_backbone(standard, outputs)
    try:
        if load_start(model, start)["left_out"]:
            model = make_backbone(standard, 0)
            load_start(model, start)
    except ValueError as error:
        raise ValueError(
            f"no training can start from {given}: {error}. Expected weights of a standard {recipe.model} "
            f"with {dict(recipe.model_options)}"
        ) from error
    return model


def keep_start(model: nn.Module, folder: Path, told: dict[str, Any]) -> None:
    """Write the start's folder, whole or not at all.

    Args:
        model: of ``started_model``.
        folder: where to.
        told: where the weights are from, for ``start.json``.
    """
    with writing(folder, overwrite=True) as unfinished:
        save_backbone(model, unfinished)
        (unfinished / "start.json").write_text(
            json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8", errors="backslashreplace"
        )


def is_kept(folder: Path) -> bool:
    """Whether a start's folder is whole."""
    return (folder / MANIFEST).is_file()


def kept_start(folder: Path, given: str) -> Checkpoint:
    """The start as every training takes it; it says by which name it was given."""
    return replace(read_checkpoint(weights_of(folder)), source=given)


def weights_of(folder: Path) -> Path:
    """The file of weights in a start's folder."""
    return folder / "model.safetensors"
