"""VisionTransformerRelPos of timm: ViTs with relative position bias, with or without CLS."""

from tokenlens.families._timm import TimmFamily


class TimmRelPos(TimmFamily):
    """timm.models.vision_transformer_relpos.VisionTransformerRelPos and its subclasses."""

    name = "timm_relpos"
    timm_class = "timm.models.vision_transformer_relpos.VisionTransformerRelPos"
