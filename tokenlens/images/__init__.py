"""Sources of images, decoding, preprocessing, and the sample photographs."""

from tokenlens.images.batches import iterate_batches
from tokenlens.images.copies import ImageWarning, iterate_distinct
from tokenlens.images.preprocessing import Batch
from tokenlens.images.sources import ImageSource, open_images

__all__ = [
    "Batch",
    "ImageSource",
    "ImageWarning",
    "iterate_batches",
    "iterate_distinct",
    "open_images",
]
