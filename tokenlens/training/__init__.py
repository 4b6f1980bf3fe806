"""Train standard and specialized models by the same recipes."""

from tokenlens.training.recipe import Recipe, recipe_of, recipes
from tokenlens.training.run import TrainedRun
from tokenlens.training.train import train

__all__ = [
    "Recipe",
    "TrainedRun",
    "recipe_of",
    "recipes",
    "train",
]
