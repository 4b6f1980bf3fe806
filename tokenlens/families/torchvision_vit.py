"""VisionTransformer of torchvision (``vit_b_16`` and others)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokenlens.families._attention_output import AttentionOutput, output_of
from tokenlens.families.base import BlockComponents, BlockTaps, Family, grid_of, is_a, linear_paths, residual_taps
from tokenlens.tokens import TokenLayout


class TorchvisionViT(Family):
    """torchvision.models.VisionTransformer and its subclasses."""

    name = "torchvision_vit"

    def matches(self, model: Any) -> bool:
        """Return whether the model is an instance of the class of torchvision."""
        return is_a(model, "torchvision.models.vision_transformer.VisionTransformer")

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """Return the layout: CLS, then the patches; the model takes one image size only."""
        side = model.image_size
        if tuple(image_size) != (side, side):
            raise ValueError(
                f"this VisionTransformer takes images of {side}×{side} pixels, got {image_size[0]}×{image_size[1]}; "
                f"create it with image_size={image_size[0]}"
            )
        patch_size = (model.patch_size, model.patch_size)
        return TokenLayout(grid_of(image_size, patch_size), patch_size=patch_size)

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """Return ``model.encoder.layers``."""
        return list(model.encoder.layers)

    def taps(self, block: Any) -> BlockTaps:
        """Return the taps; the attention branch ends in the block's dropout, the other one in its MLP."""
        return residual_taps(block, block.self_attention, (block.ln_1, block.ln_2), (block.dropout, block.mlp))

    def components(self, block: Any) -> BlockComponents:
        """Return norms and MLP; ``nn.MultiheadAttention`` passes all its weights to one function."""
        fused = (
            "nn.MultiheadAttention passes the weights of its projections to one function, which takes a single set. "
            "Specialize norm and mlp only, or the same model of timm"
        )
        return BlockComponents(
            norm=("ln_1", "ln_2"), mlp=linear_paths(block, "mlp"), refused={"qkv": fused, "proj": fused}
        )

    def attention_output(self, block: Any) -> AttentionOutput:
        """Return the output projection of ``nn.MultiheadAttention``."""
        return output_of(block, ["self_attention.out_proj"])

    def final_norm(self, model: Any) -> nn.Module | None:
        """Return ``model.encoder.ln``."""
        return model.encoder.ln
