"""The weights that every training of a verification starts from, kept in its folder.

They are read once from a file, a run folder or a model, loaded into the recipe's standard model, and saved as that
model. All trainings then start from this file, even when its source is gone later, and the start is probed and analyzed
as exactly the function that standard and specialized models begin with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from tokenlens.models.checkpoints import Checkpoint, read_checkpoint
from tokenlens.models.loading import load_model
from tokenlens.specialization import save_timm_folder
from tokenlens.storage.files import write_json
from tokenlens.storage.run_folder import writing
from tokenlens.training.backbone import load_start, make_backbone
from tokenlens.training.objectives.base import make_options, objectives
from tokenlens.training.recipe import Recipe


def find_start(given: str, blocks: int | None = None) -> Checkpoint:
    """Read the weights to start from.

    Args:
        given: a file of weights, the run folder of a training, or a name that ``load_model`` takes.
        blocks: keep only the first so many blocks; None for all.

    Raises:
        LookupError: for an unknown name.
        ValueError: for weights that are missing, cannot be read or have fewer blocks.
    """
    file = Path(given).expanduser()
    if file.is_file():
        found = read_checkpoint(file)
    else:
        loaded = load_model(given, device="cpu")
        found = Checkpoint(dict(loaded.module.state_dict()), loaded.weights["source"], loaded.weights["sha256"])
    return found if blocks is None else keep_blocks(found, blocks)


def keep_blocks(start: Checkpoint, count: int) -> Checkpoint:
    """Return a checkpoint with only its first blocks, and everything outside of blocks.

    Raises:
        ValueError: if it has fewer blocks, or they are not named as timm names them.
    """
    of_block = {name: re.match(r"blocks\.(\d+)\.", name) for name in start.tensors}
    present = {int(match[1]) for match in of_block.values() if match}
    if not set(range(count)) <= present:
        raise ValueError(
            f"expected at least {count} blocks named blocks.0, blocks.1 … in {start.source}, found {len(present)}"
        )
    kept = {name: start.tensors[name] for name, match in of_block.items() if match is None or int(match[1]) < count}
    return replace(start, tensors=kept, source=f"{start.source}: its first {count} of {len(present)} blocks")


def make_start_model(recipe: Recipe, classes: Sequence[str], start: Checkpoint, given: str) -> nn.Module:
    """Return the recipe's standard model with the weights of the start.

    It keeps the start's classifier where a training of that recipe does, and has none otherwise.

    Args:
        recipe: the recipe of the trainings.
        classes: the classes of their images.
        start: from ``find_start``.
        given: the user's name for it, for error messages.

    Raises:
        ValueError: if the weights do not fit.
    """
    objective = objectives.get(recipe.objective)
    options = make_options(recipe.objective, recipe.objective_options)
    standard = replace(recipe, specialization=None)
    model = make_backbone(standard, objective.classes(options, tuple(classes)))
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


def save_start(model: nn.Module, folder: Path, description: dict[str, Any]) -> None:
    """Write the folder of the start, whole or not at all; ``description`` goes into its start.json."""
    with writing(folder, overwrite=True) as unfinished:
        save_timm_folder(model, unfinished)
        write_json(unfinished / "start.json", description)


def read_start(folder: Path, given: str) -> Checkpoint:
    """Return the saved start, with the user's name for it as its source."""
    return replace(read_checkpoint(start_weights(folder)), source=given)


def start_weights(folder: Path) -> Path:
    """Return the file of weights in the folder of a start."""
    return folder / "model.safetensors"
