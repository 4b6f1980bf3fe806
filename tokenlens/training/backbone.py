"""Create the model to train, and load its starting weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from tokenlens.models.attention_bias import add_attention_bias
from tokenlens.models.checkpoints import Checkpoint
from tokenlens.models.creation import classifier_names
from tokenlens.models.fitting import FittedWeights, fit_weights
from tokenlens.models.names import find_model_source
from tokenlens.specialization import as_specialization, specialize
from tokenlens.training.recipe import Recipe


def make_backbone(recipe: Recipe, classes: int, start: Checkpoint | None = None) -> nn.Module:
    """Return the recipe's model with weights drawn from its seed.

    The standard model is created first and then specialized, so that both models of one seed are the same function and
    their heads start alike.

    Args:
        recipe: the recipe.
        classes: outputs of its classifier; 0 for none.
        start: weights to start from instead. A classifier for another number of classes is ignored.

    Raises:
        LookupError: for an unknown model or specialization.
        ValueError: for options that the model does not accept, or weights that do not fit.
    """
    source = find_model_source(recipe.model)
    if source.specialization is not None or source.folder is not None or source.transformers is not None:
        raise ValueError(
            f"model={recipe.model!r}: expected the timm name of a standard model; use specialization=… to "
            "specialize it, and a checkpoint to start from weights"
        )
    options = {"img_size": recipe.image_size, **recipe.model_options}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        try:
            model: nn.Module = timm.create_model(source.timm_name, pretrained=False, num_classes=classes, **options)
        except TypeError as error:
            raise ValueError(f"{recipe.model} cannot be created with {options}: {error}") from error
        if recipe.attention_bias:
            add_attention_bias(model)  # last, so that all other weights are those of the standard model of this seed
    if recipe.specialization is not None:
        specialize(model, as_specialization(recipe.specialization))
    if start is not None:
        load_start(model, start)
    return model


def load_start(model: nn.Module, start: Checkpoint) -> dict[str, Any]:
    """Load weights into a new model, standard or specialized; names and sizes are adapted as timm does.

    Returns:
        ``source``, ``sha256``, and ``left_out``: names of the tensors that keep their random values.

    Raises:
        ValueError: if anything but the classifier does not fit; lists the keys.
    """
    fitted = _fit_start(model, start)
    wanted = model.state_dict()
    left_out = sorted(name for name in wanted if name not in fitted.tensors)
    model.load_state_dict(fitted.tensors | {name: wanted[name] for name in left_out})
    source = ", ".join([start.source, *fitted.steps])
    return {"source": source, "sha256": start.sha256, "left_out": left_out}


def describe_start(recipe: Recipe, classes: int, start: Checkpoint) -> dict[str, Any]:
    """Return ``source`` and ``sha256`` of starting weights, and the ``steps`` that fit them to the recipe's model.

    Raises:
        LookupError, ValueError: as ``make_backbone``.
    """
    with torch.device("meta"):
        model = make_backbone(recipe, classes)
    return {"source": start.source, "sha256": start.sha256, "steps": list(_fit_start(model, start).steps)}


def _fit_start(model: nn.Module, start: Checkpoint) -> FittedWeights:
    wanted = model.state_dict()
    fitted = fit_weights(start, model, optional=tuple(f"{name}." for name in classifier_names(model)))
    if fitted.problem is not None:
        biased, known = (any(name.endswith(".bias_k") for name in tensors) for tensors in (wanted, start.tensors))
        hint = ". A model with an attention bias is another function: train it from random weights"
        raise ValueError(
            f"checkpoint {start.source} does not fit the model: {fitted.problem}{hint if biased and not known else ''}"
        )
    return fitted
