"""Hugging Face transformers: the encoder of ViTMAE, run on all patches in their order."""

# Shapes: B images, P patches.

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenlens.families._hf import HuggingFaceFamily


class HuggingFaceMae(HuggingFaceFamily):
    """``ViTMAEModel``, alone or in ``ViTMAEForPreTraining``, whose decoder does not run.

    As users run it, the model drops a random 75 % of the patches of every image, and shuffles the rest. Neither maps of
    patches nor means over images would then be what they seem. So the family sets ``mask_ratio`` to 0 while the encoder
    runs, and passes ``noise`` that increases from patch to patch, which keeps their order.
    """

    name = "hf_mae"
    parts: ClassVar = {("ViTMAELayer",): ("layernorm_before", "layernorm_after", "attention")}

    def notes(self, model: nn.Module) -> list[str]:
        """Say that nothing is masked."""
        return [f"{type(model).__qualname__} runs without masking: all patches, in their order (mask_ratio 0)."]

    def forward(self, model: Any, images: Tensor) -> Any:
        """Run the encoder with ``mask_ratio`` 0 and sorted noise; the model's own ``mask_ratio`` is restored."""
        encoder = self.trunk(model)
        config, grid = encoder.config, self.layout(model, (images.shape[-2], images.shape[-1])).patches
        noise_BP = torch.arange(grid, dtype=torch.float32, device=images.device).expand(len(images), -1)
        ratio, config.mask_ratio = config.mask_ratio, 0.0
        try:
            return encoder(pixel_values=images, noise=noise_BP)
        finally:
            config.mask_ratio = ratio
