"""Changing single values of a recipe by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest

import tokenlens
from tests.support.tiny_training import tiny_recipe
from tokenlens.training.overrides import override, with_settings
from tokenlens.training.recipe import Recipe


@dataclass(frozen=True)
class Options:
    """Options of an objective."""

    mixup: float = 0.8
    crops: int = 2
    loss: Literal["bce", "ce"] = "bce"
    scale: tuple[float, float] = (0.1, 1.0)
    decay: float | None = None


def recipe(**values):
    return Recipe(**{"objective": "supervised", "model": "test_vit", "epochs": 3, **values})


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("lr=1e-4", "lr", 1e-4),
        ("lr=1", "lr", 1.0),
        ("batch_size=64", "batch_size", 64),
        ("model=test_vit2", "model", "test_vit2"),
        ("precision=bf16-mixed", "precision", "bf16-mixed"),
        ("clip_grad=none", "clip_grad", None),
        ("clip_grad = 3", "clip_grad", 3.0),
        ("betas=(0.9, 0.95)", "betas", (0.9, 0.95)),
        ("betas=[0.9,0.95]", "betas", (0.9, 0.95)),
        ("specialization=paper", "specialization", "paper"),
        ("specialization={'norm': 'all'}", "specialization", {"norm": "all"}),
        ("model_options.depth=6", "model_options", {"depth": 6}),
        ("objective_options.mixup=0", "objective_options", {"mixup": 0.0}),
        ("objective_options.loss=ce", "objective_options", {"loss": "ce"}),
        ("objective_options.scale=[0.2, 1]", "objective_options", {"scale": (0.2, 1)}),
    ],
)
def test_one_value_is_changed_by_name(setting, name, value):
    before = recipe()
    after = with_settings(before, [setting], Options)
    assert getattr(after, name) == value
    assert type(getattr(after, name)) is type(value)
    changed = {one for one in before.to_dict() if before.to_dict()[one] != after.to_dict()[one]}
    assert changed <= {name}


def test_inner_options_are_added_to_existing_ones():
    one = recipe(model_options={"depth": 2, "num_heads": 3})
    assert with_settings(one, ["model_options.depth=4"]).model_options == {"depth": 4, "num_heads": 3}
    both = ["model_options.depth=4", "model_options.embed_dim=32"]
    assert with_settings(one, both).model_options == {"depth": 4, "num_heads": 3, "embed_dim": 32}


def test_epochs_unset_steps_and_the_other_way_round():
    by_steps = with_settings(recipe(), ["steps=10"])
    assert (by_steps.steps, by_steps.epochs) == (10, None)
    by_epochs = with_settings(by_steps, ["epochs=0.5"])
    assert (by_epochs.steps, by_epochs.epochs) == (None, 0.5)
    with pytest.raises(ValueError, match="exactly one of epochs and steps"):
        with_settings(recipe(), ["steps=10", "epochs=1"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rat=1", "no setting is called 'learning_rat'"),
        ("batchsize=2", "Did you mean batch_size"),
        ("objective_options.mixupp=1", "no option of the objective supervised is called 'mixupp'. Did you mean mixup"),
        ("lr.x=1", "has nothing inside"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(setting, message):
    with pytest.raises(LookupError, match=message):
        with_settings(recipe(), [setting], Options)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr", "a setting is name=value"),
        ("lr=fast", "lr must be a number, got 'fast'"),
        ("batch_size=2.5", "batch_size must be a whole number, got 2.5"),
        ("batch_size=true", "must be a whole number, got True"),
        ("precision=fp8", "must be one of 32-true, bf16-mixed, 16-mixed, got 'fp8'"),
        ("objective_options.crops=two", "objective_options.crops must be a whole number, got 'two'"),
        ("objective_options.loss=mse", "must be one of bce, ce, got 'mse'"),
        ("warmup=1", "in \\[0, 1\\)"),
        ("lr=-1", "above 0"),
        ("seed=-1", "at least 0"),
        ("betas=(0.9, 1.5)", "two numbers"),
        ("steps=0", "above 0"),
        ("layer_decay=1.5", "in \\(0, 1\\]"),
        ("lr_end=-1", "at least 0"),
    ],
)
def test_an_invalid_value_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        with_settings(recipe(), [setting], Options)


def test_the_objective_and_its_options_can_change_together():
    one = override(tiny_recipe(), ["objective=supervised", "objective_options.loss=ce"], "norms", 3)
    assert (one.objective_options, one.specialization, one.seed) == ({"loss": "ce"}, "norms", 3)
    spelled = override(tiny_recipe(), specialize=tokenlens.Specialization(norm="all", registers="patch"))
    assert spelled.specialization == {"norm": "all", "registers": "patch"}
    assert json.dumps(spelled.to_dict())
