"""The models that ship with tokenlens, one folder each: weights, configuration and model card."""

from tokenlens.models.shipped.folders import CARD, describe, folder_of, names, origin

__all__ = ["CARD", "describe", "folder_of", "names", "origin"]
