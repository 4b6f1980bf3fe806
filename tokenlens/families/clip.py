"""The image towers of OpenAI's ``clip`` package and of open_clip's own ViTs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tokenlens.families._attention_output import AttentionOutput, output_of
from tokenlens.families._preprocessing import stored_preprocessing
from tokenlens.families.base import (
    BlockComponents,
    BlockTaps,
    Family,
    as_height_width,
    check_image_size,
    grid_of,
    linear_paths,
    residual_taps,
)
from tokenlens.tokens import TokenLayout

_OPENAI = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}
"""The preprocessing of all models of OpenAI's package (``_transform`` in its clip.py)."""


class ClipVision(Family):
    """``VisionTransformer`` of both packages, recognized by its structure; not the text tower, which has no patches.

    Of a whole CLIP model, ``model.visual`` is analyzed, as ``encode_image`` runs it. Its ``ln_pre`` stands before the
    first block. Attention is ``nn.MultiheadAttention``; OpenAI's models, and open_clip's before 2.24, run their blocks
    on (tokens, images, channels).
    """

    name = "clip"

    def matches(self, model: Any) -> bool:
        """Return whether the model has the children of the original code, and blocks with their parts."""
        if not all(hasattr(model, name) for name in ("conv1", "class_embedding", "positional_embedding", "ln_post")):
            return False
        blocks = getattr(getattr(model, "transformer", None), "resblocks", None) or ()
        parts = ("ln_1", "attn", "ln_2", "mlp")
        return len(blocks) > 0 and all(hasattr(block, part) for block in blocks for part in parts)

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """Return the layout: CLS, then the patches; the model takes one image size only."""
        size = model.image_size if hasattr(model, "image_size") else model.input_resolution
        check_image_size(model, image_size, as_height_width(size))
        patch_size = as_height_width(model.conv1.stride)
        return TokenLayout(grid_of(image_size, patch_size), patch_size=patch_size)

    def blocks(self, model: Any) -> list[nn.Module]:
        """Return ``model.transformer.resblocks``."""
        return list(model.transformer.resblocks)

    def taps(self, block: Any) -> BlockTaps:
        """Return the taps; branches end in ``ls_1`` and ``ls_2`` (open_clip), else in attention and MLP."""
        branches = getattr(block, "ls_1", block.attn), getattr(block, "ls_2", block.mlp)
        return residual_taps(
            block, block.attn, (block.ln_1, block.ln_2), branches, sequence_first=_is_sequence_first(block.attn)
        )

    def components(self, block: Any) -> BlockComponents:
        """Return norms, LayerScale and MLP, unless the block runs on (tokens, images, channels).

        q, k and v are one bare parameter, of ``nn.MultiheadAttention`` or of open_clip's own attention.
        """
        if _is_sequence_first(block.attn):
            why = (
                "its blocks run on (tokens, images, channels), where weights cannot be chosen by token. Specialize the "
                "same model of timm (vit_base_patch16_clip_quickgelu_224.openai and others)"
            )
            return BlockComponents(refused=dict.fromkeys(("norm", "layer_scale", "qkv", "proj", "mlp"), why))
        bare = "its projection to q, k and v is a bare parameter. Specialize the same model of timm"
        return BlockComponents(
            norm=("ln_1", "ln_2"),
            layer_scale=_trained_scales(block),
            mlp=linear_paths(block, "mlp"),
            refused={"qkv": bare, "proj": bare} if isinstance(block.attn, nn.MultiheadAttention) else {"qkv": bare},
            proj=() if isinstance(block.attn, nn.MultiheadAttention) else ("attn.out_proj",),
        )

    def attention_output(self, block: Any) -> AttentionOutput:
        """Return the output projection, then LayerScale."""
        return output_of(block, ["attn.out_proj", *_trained_scales(block)[:1]])

    def final_norm(self, model: Any) -> nn.Module | None:
        """Return ``ln_post`` of open_clip where it sees all tokens; in OpenAI's models it sees CLS only."""
        sees_all = getattr(model, "final_ln_after_pool", True) is False and model.attn_pool is None
        return model.ln_post if sees_all and not isinstance(model.ln_post, nn.Identity) else None

    def preprocessing(self, model: Any) -> Mapping[str, Any]:
        """Return the preprocessing that open_clip stores in the model, or that of OpenAI's models."""
        return stored_preprocessing(model) or _OPENAI

    def forward(self, model: Any, images: Tensor) -> Any:
        """Run the image tower on images in the precision of its first layer, as ``encode_image`` does."""
        return model(images.to(model.conv1.weight.dtype))


def _trained_scales(block: nn.Module) -> tuple[str, ...]:
    return tuple(
        name for name in ("ls_1", "ls_2") if any(True for _ in getattr(block, name, nn.Identity()).parameters())
    )


def _is_sequence_first(attention: nn.Module) -> bool:
    return isinstance(attention, nn.MultiheadAttention) and not attention.batch_first
