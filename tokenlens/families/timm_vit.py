"""VisionTransformer of timm: ViT, DeiT, DeiT-III, DINO, DINOv2 with or without registers, MAE, CLIP, SigLIP, AIMv2."""

from tokenlens.families._timm import TimmFamily


class TimmViT(TimmFamily):
    """timm.models.vision_transformer.VisionTransformer and its subclasses."""

    name = "timm_vit"
    timm_class = "timm.models.vision_transformer.VisionTransformer"
