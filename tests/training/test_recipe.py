"""Recipes."""

from __future__ import annotations

import json

import pytest

from tests.support.tiny_training import tiny_recipe
from tokenlens.training.recipe import Recipe


def test_a_recipe_survives_json():
    one = tiny_recipe(model_options={"depth": 2}, betas=(0.9, 0.95), specialization={"norm": "all"})
    assert Recipe.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_exactly_one_of_epochs_and_steps():
    for given in ({"steps": None}, {"epochs": 3}):
        with pytest.raises(ValueError, match="exactly one of epochs and steps"):
            tiny_recipe(**given)
