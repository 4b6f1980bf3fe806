"""The models that come with tokenlens, one folder each: weights, configuration and model card."""

from tokenlens.models.shipped.folders import CARD, NOTICE, describe, describe_source, find_folder, list_names

__all__ = ["CARD", "NOTICE", "describe", "describe_source", "find_folder", "list_names"]
