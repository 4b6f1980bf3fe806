"""Hugging Face transformers: SigLIP 2 (NaFlex), run on whole images of one size."""

# Shapes: B images, P patches, C channels of a patch's pixels.

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenlens.families._hf import HuggingFaceFamily
from tokenlens.families.base import grid_of
from tokenlens.tokens import TokenLayout


class HuggingFaceSiglip2(HuggingFaceFamily):
    """``Siglip2VisionModel``, alone or in ``Siglip2Model`` or a classifier.

    The model takes sequences of patches. The family cuts images of one size into patches as the model's image processor
    does, without padding.
    """

    name = "hf_siglip2"
    parts: ClassVar = {("Siglip2EncoderLayer",): ("layer_norm1", "layer_norm2", "self_attn")}

    def trunk(self, model: nn.Module) -> Any:
        """Return the image encoder."""
        wanted = (part for part in model.modules() if type(part).__name__ == "Siglip2VisionModel")
        return next((part for part in wanted if self._blocks(part)), None)

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """Return the layout: only patches, of images of any size that is a multiple of the patch size."""
        patch = (self.trunk(model).embeddings.patch_size,) * 2
        return TokenLayout(grid_of(image_size, patch), (), patch_size=patch)

    def forward(self, model: Any, images: Tensor) -> Any:
        """Run the model on the patches of the images."""
        rows, columns = self.layout(model, (images.shape[-2], images.shape[-1])).grid
        patch = self.trunk(model).embeddings.patch_size
        parts = images.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))  # B, colours, rows, y, columns, x
        patches_BPC = parts.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        run = model.get_image_features if hasattr(model, "get_image_features") else model
        return run(
            pixel_values=patches_BPC,
            pixel_attention_mask=torch.ones(patches_BPC.shape[:2], dtype=torch.int64, device=images.device),
            spatial_shapes=torch.tensor([(rows, columns)] * len(images), device=images.device),
        )
