"""Train by the name of a recipe."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tokenlens.training.recipe import Recipe, recipe_of

if TYPE_CHECKING:
    from tokenlens.images.labelled.classes import LabelledImages
    from tokenlens.training.run import TrainedRun


def train(
    recipe: str | Recipe,
    data: str | os.PathLike[str] | LabelledImages,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> TrainedRun:
    """Train a model by a recipe, or go on with a training that stopped or was killed.

    Args:
        recipe: a name from ``tokenlens list recipes``, or a recipe of one's own.
        data: images; see ``tokenlens.images.labelled.classes.open_labelled``.
        out: the run folder; by default ``runs/NAME[_PRESET]_seedN``.
        options: see ``tokenlens.training.fit.fit``.

    Raises:
        LookupError: for an unknown recipe, with the nearest names; and all that ``tokenlens.training.fit.fit`` raises.
    """
    chosen = recipe_of(recipe) if isinstance(recipe, str) else recipe
    try:
        from tokenlens.training.fit import fit
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("lightning_fabric", "lightly"):
            raise ValueError(
                f"training needs {error.name}, which is not installed: pip install 'tokenlens-vit[train]'"
            ) from error
        raise
    return fit(chosen, data, out, **{"name": recipe if isinstance(recipe, str) else None, **options})
