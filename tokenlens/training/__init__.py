"""Train standard and specialized models by the same recipes."""

from tokenlens.training.recipe import Recipe, get_recipe, recipes
from tokenlens.training.train import train
from tokenlens.training.trained_run import TrainedRun

__all__ = [
    "Recipe",
    "TrainedRun",
    "get_recipe",
    "recipes",
    "train",
]
