"""timm's VisionTransformer: ViT, DeiT (also distilled), DeiT-III, DINO, DINOv2 with or without registers, MAE, CLIP."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tokenlens.families import BlockTaps, Family, Tap, as_pair, grid_of
from tokenlens.recording import Site
from tokenlens.tokens import TokenLayout


def timm_grid(model: nn.Module, image_size: tuple[int, int]) -> tuple[int, int]:
    """The patch grid of a timm model; ValueError where the model does not take images of this size."""
    patch_embed = model.patch_embed
    expected = as_pair(patch_embed.img_size) if getattr(patch_embed, "img_size", None) is not None else None
    if getattr(patch_embed, "strict_img_size", True) and expected is not None and expected != tuple(image_size):
        raise ValueError(
            f"this {type(model).__qualname__} takes images of {expected[0]}×{expected[1]} pixels, got "
            f"{image_size[0]}×{image_size[1]}; create it with img_size={image_size[0]} or dynamic_img_size=True"
        )
    return grid_of(image_size, as_pair(patch_embed.patch_size))


def residual_taps(block: nn.Module) -> dict[Site, Tap]:
    """Taps of a timm block whose residual branches end in ``drop_path1`` and ``drop_path2``."""
    pre_norm = block.norm2
    return {
        Site.RESID_PRE: Tap(block, "input"),
        Site.NORM1: Tap(block.norm1),
        Site.ATTN_OUT: Tap(block.drop_path1),
        Site.RESID_MID: Tap(pre_norm, "input"),
        Site.NORM2: Tap(block.norm2),
        Site.MLP_OUT: Tap(block.drop_path2),
        Site.RESID_POST: Tap(block),
    }


class TimmViT(Family):
    """timm.models.vision_transformer.VisionTransformer and its subclasses."""

    name = "timm_vit"

    def matches(self, model: nn.Module) -> bool:
        """Whether the model is an instance of timm's class."""
        from timm.models.vision_transformer import VisionTransformer

        return isinstance(model, VisionTransformer)

    def layout(self, model: nn.Module, image_size: tuple[int, int]) -> TokenLayout:
        """CLS if the model has one, the distillation token, then registers, then the grid."""
        prefix = ("cls",) * bool(model.has_class_token)
        prefix += ("dist",) * (getattr(model, "dist_token", None) is not None)
        prefix += ("reg",) * int(model.num_reg_tokens)
        assert len(prefix) == model.num_prefix_tokens
        return TokenLayout(grid=timm_grid(model, image_size), prefix=prefix)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """``model.blocks``."""
        return list(model.blocks)

    def taps(self, block: nn.Module) -> BlockTaps:
        """Residual branches end in drop_path1 and drop_path2, after LayerScale."""
        return BlockTaps(sites=residual_taps(block), attention=block.attn)

    def final_norm(self, model: nn.Module) -> nn.Module | None:
        """``model.norm``, unless the model normalizes only after pooling (fc_norm)."""
        return None if isinstance(model.norm, nn.Identity) else model.norm
