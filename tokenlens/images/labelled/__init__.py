"""Labelled images and masks: folders, archives, shards, data sets and their splits."""

from tokenlens.images.labelled.classes import LabelledImages, open_labelled
from tokenlens.images.labelled.masks import MaskedImages, open_masks

__all__ = [
    "LabelledImages",
    "MaskedImages",
    "open_labelled",
    "open_masks",
]
