"""How the weights are moved: the optimizer, its groups of parameters, and the schedules of its numbers."""

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

from tokenlens.catalog import nearest
from tokenlens.training.objectives.base import Objective
from tokenlens.training.recipe import Recipe


def optimizer_of(objective: Objective, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer for all parameters of an objective that are trained.

    Raises:
        LookupError: for an optimizer that timm does not have, with the nearest names.
        ValueError: if nothing is trained.
    """
    known = [str(name) for name in list_optimizers()]
    if recipe.optimizer not in known:
        close = nearest(recipe.optimizer, known)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise LookupError(f"no optimizer is called {recipe.optimizer!r}.{hint} Available: {', '.join(known)}.")
    groups = parameter_groups(objective, recipe.layer_decay)
    if not groups:
        raise ValueError(f"the objective {recipe.objective} has no parameters that are trained")
    options: dict[str, Any] = {"betas": recipe.betas} if get_optimizer_info(recipe.optimizer).has_betas else {}
    return create_optimizer_v2(groups, opt=recipe.optimizer, lr=recipe.lr, weight_decay=0.0, **options)


def parameter_groups(objective: Objective, layer_decay: float | None) -> list[dict[str, Any]]:
    """Parameters that share their numbers: ``lr_scale`` and ``decay_scale`` (0 or 1) multiply the schedules' values.

    Weights with one dimension, biases and what the backbone itself excepts (timm's ``no_weight_decay``) do not decay.
    With ``layer_decay`` a block's learning rate is that factor of the next one's; heads outside the backbone keep
    theirs.
    """
    backbone = objective.backbone
    excepted: Collection[str] = cast(Any, backbone).no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    # timm is told a decay of 1, so that what it writes into the groups is the scale.
    groups = param_groups_weight_decay(
        objective, weight_decay=1.0, no_weight_decay_list={f"backbone.{name}" for name in excepted}
    )
    if layer_decay is not None:
        own = {id(parameter) for parameter in backbone.parameters()}
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        groups = [group for group in groups if group["params"]]
        groups = (
            param_groups_layer_decay(backbone, weight_decay=1.0, no_weight_decay_list=excepted, layer_decay=layer_decay)
            + groups
        )
    return [
        {
            "params": group["params"],
            "lr_scale": group.get("lr_scale", 1.0),
            "decay_scale": group["weight_decay"],
            "weight_decay": 0.0,
        }
        for group in groups
    ]


def set_schedule(optimizer: Optimizer, recipe: Recipe, step: int, steps: int) -> tuple[float, float]:
    """Give the optimizer's groups the numbers of a step (from 0); returns the learning rate and the weight decay."""
    lr, decay = learning_rate(recipe, step, steps), weight_decay(recipe, step, steps)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr * group["lr_scale"], decay * group["decay_scale"]
    return lr, decay


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Of a step: rises linearly over the warmup, to ``lr`` at its last step, then falls as half a cosine."""
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
    """Of a step: half a cosine from ``weight_decay`` to ``weight_decay_end``, or constant."""
    from lightly.utils.scheduler import cosine_schedule

    if recipe.weight_decay_end is None:
        return recipe.weight_decay
    return cosine_schedule(step, steps, recipe.weight_decay, recipe.weight_decay_end)
