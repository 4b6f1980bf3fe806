"""A recipe: what it takes, how it is written down, how single values are changed by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest

from tokenlens.training.recipe import Recipe


@dataclass(frozen=True)
class Options:
    """Of an objective."""

    mixup: float = 0.8
    crops: int = 2
    loss: Literal["bce", "ce"] = "bce"
    scale: tuple[float, float] = (0.1, 1.0)
    decay: float | None = None


def recipe(**values):
    return Recipe(**{"objective": "supervised", "model": "test_vit", "epochs": 3, **values})


def test_a_recipe_survives_json():
    one = recipe(model_options={"depth": 2}, betas=(0.9, 0.95), specialization={"norm": "all"})
    assert Recipe.from_dict(json.loads(json.dumps(one.to_dict()))) == one


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
    after = before.with_settings([setting], Options)
    assert getattr(after, name) == value
    assert type(getattr(after, name)) is type(value)
    changed = {one for one in before.to_dict() if before.to_dict()[one] != after.to_dict()[one]}
    assert changed <= {name}


def test_options_inside_are_added_to_those_that_are_there():
    one = recipe(model_options={"depth": 2, "num_heads": 3})
    assert one.with_settings(["model_options.depth=4"]).model_options == {"depth": 4, "num_heads": 3}
    both = ["model_options.depth=4", "model_options.embed_dim=32"]
    assert one.with_settings(both).model_options == {"depth": 4, "num_heads": 3, "embed_dim": 32}


def test_epochs_take_back_steps_and_the_other_way_round():
    by_steps = recipe().with_settings(["steps=10"])
    assert (by_steps.steps, by_steps.epochs) == (10, None)
    by_epochs = by_steps.with_settings(["epochs=0.5"])
    assert (by_epochs.steps, by_epochs.epochs) == (None, 0.5)
    with pytest.raises(ValueError, match="exactly one of epochs and steps"):
        recipe().with_settings(["steps=10", "epochs=1"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rat=1", "no setting is called 'learning_rat'"),
        ("batchsize=2", "Did you mean batch_size"),
        ("objective_options.mixupp=1", "no option of the objective supervised is called 'mixupp'. Did you mean mixup"),
        ("lr.x=1", "has nothing inside"),
    ],
)
def test_an_unknown_name_gets_the_nearest(setting, message):
    with pytest.raises(LookupError, match=message):
        recipe().with_settings([setting], Options)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr", "a setting is name=value"),
        ("lr=fast", "lr='fast' is of type str; expected float"),
        ("batch_size=2.5", "expected int"),
        ("batch_size=true", "expected int"),
        ("precision=fp8", "expected Literal"),
        ("objective_options.crops=two", "objective_options.crops='two' is of type str; expected int"),
        ("objective_options.loss=mse", "expected Literal"),
        ("warmup=1", "in \\[0, 1\\)"),
        ("lr=-1", "above 0"),
        ("seed=-1", "at least 0"),
        ("betas=(0.9, 1.5)", "two numbers"),
        ("steps=0", "above 0"),
        ("layer_decay=1.5", "in \\(0, 1\\]"),
        ("lr_end=-1", "at least 0"),
    ],
)
def test_a_value_that_cannot_be_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        recipe().with_settings([setting], Options)


def test_exactly_one_of_epochs_and_steps():
    for given in ({"epochs": None}, {"steps": 3}):
        with pytest.raises(ValueError, match="exactly one of epochs and steps"):
            recipe(**given)
