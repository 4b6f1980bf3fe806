"""VisionTransformer of timm: ViT, DeiT, DeiT-III, DINO, DINOv2 with or without registers, MAE, CLIP, SigLIP, AIMv2."""

from dataclasses import replace
from typing import Any

from tokenlens.families._timm import TimmFamily
from tokenlens.families.base import BlockTaps, Tap, is_a


class TimmViT(TimmFamily):
    """timm.models.vision_transformer.VisionTransformer and its subclasses."""

    name = "timm_vit"
    timm_class = "timm.models.vision_transformer.VisionTransformer"

    def taps(self, block: Any) -> BlockTaps:
        """Return the taps of timm, with the neurons of the MLP of a pre-norm block."""
        taps = super().taps(block)
        if not is_a(block, "timm.models.vision_transformer.Block") or not hasattr(block.mlp, "fc2"):
            return taps
        return replace(taps, mlp_hidden=Tap(block.mlp.fc2, "input"))
