"""NaFlexVit of timm, run on whole images of one size (not on sequences of patches)."""

from __future__ import annotations

from typing import Any

from tokenlens.families._timm import TimmFamily
from tokenlens.families.base import as_height_width, grid_of


class TimmNaFlexVit(TimmFamily):
    """timm.models.naflexvit.NaFlexVit and its subclasses."""

    name = "timm_naflexvit"
    timm_class = "timm.models.naflexvit.NaFlexVit"

    def grid(self, model: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the patch grid of images of any size that is, or is padded to, a multiple of the patch size."""
        patch_rows, patch_columns = self.patch_size(model)
        if model.embeds.dynamic_img_pad:
            return (-(-image_size[0] // patch_rows), -(-image_size[1] // patch_columns))
        return grid_of(image_size, (patch_rows, patch_columns))

    def channels(self, model: Any) -> int:
        """Return the number of channels; the embedding of patches may be linear."""
        return int(model.in_chans)

    def patch_size(self, model: Any) -> tuple[int, int]:
        """Return height and width of a patch in pixels."""
        return as_height_width(model.embeds.patch_size)
