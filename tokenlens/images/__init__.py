"""Sources of images, decoding, preprocessing, and the sample photographs."""

from tokenlens.images.batches import iterate_batches
from tokenlens.images.preprocessing import Batch
from tokenlens.images.sources import ImageSource, open_images

__all__ = [
    "Batch",
    "ImageSource",
    "iterate_batches",
    "open_images",
]
