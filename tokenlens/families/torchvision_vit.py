"""torchvision's VisionTransformer (vit_b_16 and its siblings)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokenlens.families.base import BlockComponents, BlockTaps, Family, Tap, grid_of, is_a, linear_paths
from tokenlens.tokens import Site, TokenLayout


class TorchvisionViT(Family):
    """torchvision.models.VisionTransformer and its subclasses."""

    name = "torchvision_vit"

    def matches(self, model: Any) -> bool:
        """Whether the model is an instance of torchvision's class."""
        return is_a(model, "torchvision.models.vision_transformer.VisionTransformer")

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """CLS, then the grid; the model takes one image size only."""
        side = model.image_size
        if tuple(image_size) != (side, side):
            raise ValueError(
                f"this VisionTransformer takes images of {side}×{side} pixels, got {image_size[0]}×{image_size[1]}; "
                f"create it with image_size={image_size[0]}"
            )
        return TokenLayout(grid_of(image_size, (model.patch_size, model.patch_size)))

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """``model.encoder.layers``."""
        return list(model.encoder.layers)

    def taps(self, block: Any) -> BlockTaps:
        """The attention branch ends in the block's dropout, the other in its MLP."""
        return BlockTaps(
            sites={
                Site.RESID_PRE: Tap(block, "input"),
                Site.NORM1: Tap(block.ln_1),
                Site.ATTN_OUT: Tap(block.dropout),
                Site.RESID_MID: Tap(block.ln_2, "input"),
                Site.NORM2: Tap(block.ln_2),
                Site.MLP_OUT: Tap(block.mlp),
                Site.RESID_POST: Tap(block),
            },
            attention=block.self_attention,
        )

    def components(self, block: Any) -> BlockComponents:
        """Norms and MLP; ``nn.MultiheadAttention`` hands all its weights to one function."""
        fused = (
            "nn.MultiheadAttention hands the weights of its projections to one function that takes one set only. "
            "norm and mlp can be specialized, or the same model of timm"
        )
        return BlockComponents(
            norm=("ln_1", "ln_2"), mlp=linear_paths(block, "mlp"), refused={"qkv": fused, "proj": fused}
        )

    def final_norm(self, model: Any) -> nn.Module | None:
        """``model.encoder.ln``."""
        return model.encoder.ln
