"""The optimizer, its parameter groups, and the schedules of learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch.optim import Optimizer

from tokenlens.catalog import check_known
from tokenlens.training.objectives.base import Objective
from tokenlens.training.recipe import Recipe


def make_optimizer(objective: Objective, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimizer for all trainable parameters of an objective.

    Raises:
        LookupError: for an optimizer that timm does not have; names the nearest ones.
        ValueError: if there is nothing to train.
    """
    check_known(recipe.optimizer, map(str, list_optimizers()), "optimizer")
    groups = parameter_groups(objective, recipe.layer_decay, (recipe.lr_vectors or recipe.lr) / recipe.lr)
    if not groups:
        raise ValueError(f"the objective {recipe.objective} has no trainable parameters")
    options: dict[str, Any] = {"betas": recipe.betas} if get_optimizer_info(recipe.optimizer).has_betas else {}
    return create_optimizer_v2(groups, opt=recipe.optimizer, lr=recipe.lr, weight_decay=0.0, **options)


def parameter_groups(
    objective: Objective, layer_decay: float | None, vector_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Return groups of parameters with ``lr_scale`` and ``decay_scale`` (0 or 1), factors of the schedules' values.

    Weights with one dimension, biases and what the backbone exempts (timm's ``no_weight_decay``) do not decay. With
    ``layer_decay`` the learning rate of a block is that factor times the next block's; heads outside the backbone are
    not affected. ``vector_scale`` multiplies the learning rate of the backbone's weights with one dimension.
    """
    backbone = objective.backbone
    exempt: Collection[str] = cast(Any, backbone).no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    # With a decay of 1, what timm writes into the groups is the scale.
    groups = param_groups_weight_decay(
        objective, weight_decay=1.0, no_weight_decay_list={f"backbone.{name}" for name in exempt}
    )
    inside = {id(parameter) for parameter in backbone.parameters()}
    if layer_decay is not None:
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in inside]
        groups = [group for group in groups if group["params"]]
        groups = (
            param_groups_layer_decay(backbone, weight_decay=1.0, no_weight_decay_list=exempt, layer_decay=layer_decay)
            + groups
        )
    vectors = {id(parameter) for parameter in backbone.parameters() if vector_scale != 1 and parameter.ndim <= 1}
    scaled = []
    for group in groups:
        for scale, members in (
            (1.0, [parameter for parameter in group["params"] if id(parameter) not in vectors]),
            (vector_scale, [parameter for parameter in group["params"] if id(parameter) in vectors]),
        ):
            if members:
                lr_scale = scale * group.get("lr_scale", 1.0)
                decay_scale = group["weight_decay"]
                scaled.append(
                    {"params": members, "lr_scale": lr_scale, "decay_scale": decay_scale, "weight_decay": 0.0}
                )
    return scaled


def set_schedule(optimizer: Optimizer, recipe: Recipe, step: int, steps: int) -> tuple[float, float]:
    """Set learning rate and weight decay of all groups for a step (from 0), and return both."""
    lr, decay = learning_rate(recipe, step, steps), weight_decay(recipe, step, steps)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr * group["lr_scale"], decay * group["decay_scale"]
    return lr, decay


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step: linear up to ``lr`` over the warmup, then half a cosine down."""
    from lightly.utils.scheduler import cosine_warmup_schedule

    return cosine_warmup_schedule(
        step,
        steps,
        start_value=recipe.lr,
        end_value=recipe.lr_end,
        warmup_steps=round(recipe.warmup * steps),
        warmup_start_value=0.0,
    )


def weight_decay(recipe: Recipe, step: int, steps: int) -> float:
    """Return the weight decay of a step: half a cosine from ``weight_decay`` to ``weight_decay_end``, or constant."""
    from lightly.utils.scheduler import cosine_schedule

    if recipe.weight_decay_end is None:
        return recipe.weight_decay
    return cosine_schedule(step, steps, recipe.weight_decay, recipe.weight_decay_end)
