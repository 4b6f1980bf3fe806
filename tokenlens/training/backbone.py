"""Create the model to train, and load its starting weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from tokenlens.models.checkpoints import Checkpoint, adapt_to_timm, describe_mismatch, describe_resampling
from tokenlens.models.names import find_model_source
from tokenlens.specialization import as_specialization, expand_standard_weights, specialize
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
    if source.specialization is not None or source.folder is not None:
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
    wanted = model.state_dict()
    adapted = expand_standard_weights(adapt_to_timm(start.tensors, model), model)
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    heads = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    adapted = {
        name: tensor
        for name, tensor in adapted.items()
        if not (name.startswith(heads) and (name not in wanted or wanted[name].shape != tensor.shape))
    }
    left_out = sorted(name for name in wanted if name.startswith(heads) and name not in adapted)
    adapted |= {name: wanted[name] for name in left_out}
    problem = describe_mismatch(adapted, model)
    if problem is not None:
        raise ValueError(f"checkpoint {start.source} does not fit the model: {problem}")
    model.load_state_dict(adapted)
    source = ", ".join([start.source, *describe_resampling(start.tensors, adapted)])
    return {"source": source, "sha256": start.sha256, "left_out": left_out}
