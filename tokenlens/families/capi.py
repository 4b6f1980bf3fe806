"""The encoder of the original CAPI models (torch.hub facebookresearch/capi)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokenlens.families.base import (
    BlockComponents,
    BlockTaps,
    Family,
    Tap,
    as_height_width,
    grid_of,
    linear_paths,
    residual_taps,
)
from tokenlens.tokens import TokenLayout


class Capi(Family):
    """``EncoderDecoder`` of CAPI, recognized by its structure; the predictor, which it calls decoder, is not observed.

    It has registers and no CLS: the image is summarized by the mean output of the predictor.
    """

    name = "capi"

    def matches(self, model: Any) -> bool:
        """Return whether the model has the children of the original code, and blocks of two residual modules."""
        if not all(hasattr(model, name) for name in ("encoder", "enc_norm", "registers", "patch_embed")):
            return False
        blocks = getattr(model.encoder, "blocks", [])
        parts = [getattr(block, name, None) for block in blocks for name in ("residual1", "residual2")]
        return len(parts) > 0 and all(hasattr(part, name) for part in parts for name in ("norm", "fn"))

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """Return the layout: registers, then the patches of an image of any size."""
        patch_size = as_height_width(model.patch_embed.stride)
        return TokenLayout(grid_of(image_size, patch_size), ("reg",) * model.registers.shape[1], patch_size=patch_size)

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """Return the blocks of the encoder."""
        return list(model.encoder.blocks)

    def taps(self, block: Any) -> BlockTaps:
        """Return the taps; each residual module adds ``fn(norm(x))``."""
        first, second = block.residual1, block.residual2
        norms, branches = (first.norm, second.norm), (first.fn, second.fn)
        return residual_taps(block, first.fn, norms, branches, resid_mid=Tap(second, "input"))

    def components(self, block: Any) -> BlockComponents:
        """Return the components; q, k and v are three modules, and there is no LayerScale."""
        return BlockComponents(
            norm=("residual1.norm", "residual2.norm"),
            qkv=tuple(f"residual1.fn.{name}" for name in ("q_proj", "k_proj", "v_proj")),
            proj=("residual1.fn.proj",),
            mlp=linear_paths(block, "residual2"),
        )

    def final_norm(self, model: Any) -> nn.Module | None:
        """Return ``enc_norm``, or None if it runs twice, because the features are those of an earlier block."""
        norm: nn.Module = model.enc_norm
        return norm if model.out_layer == len(model.encoder.blocks) else None
