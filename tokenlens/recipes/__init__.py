"""Training configurations, one file each: ``RECIPE``, and a docstring with command, hardware, time and result."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tokenlens.catalog import Catalog
from tokenlens.recipe import Recipe

if TYPE_CHECKING:
    from tokenlens.labelled import LabelledImages
    from tokenlens.training import TrainedRun

recipes = Catalog("tokenlens.recipes", "recipe")


def recipe_of(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        LookupError: if there is none, with the nearest names.
    """
    recipe: Recipe = recipes.module(name).RECIPE
    return recipe


def train(
    recipe: str | Recipe,
    data: str | os.PathLike[str] | LabelledImages,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> TrainedRun:
    """Train a model by a recipe, or go on with a training that stopped or was killed.

    Args:
        recipe: a name from ``tokenlens list recipes``, or a recipe of one's own.
        data: images; see ``tokenlens.labelled.open_labelled``.
        out: the run folder; by default ``runs/NAME[_PRESET]_seedN``.
        options: see ``tokenlens.training.train``.

    Raises:
        LookupError: for an unknown recipe, with the nearest names; and all that ``tokenlens.training.train`` raises.
    """
    chosen = recipe_of(recipe) if isinstance(recipe, str) else recipe
    try:
        from tokenlens import training
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("lightning_fabric", "lightly"):
            raise ValueError(
                f"training needs {error.name}, which is not installed: pip install 'tokenlens-vit[train]'"
            ) from error
        raise
    return training.train(chosen, data, out, **{"name": recipe if isinstance(recipe, str) else None, **options})
