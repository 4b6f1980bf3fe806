"""Sources of images, decoding, preprocessing, and the sample photographs."""

from tokenlens.images.sources import Batch, ImageSource, batches, open_images

__all__ = [
    "Batch",
    "ImageSource",
    "batches",
    "open_images",
]
