"""An augmentation of torchvision or timm as the views of an objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class SingleView:
    """One view of an image, (C, H, W); passes to worker processes if the transform does."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """A list of one tensor."""
        return [self.transform(image)]
