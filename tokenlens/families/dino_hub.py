"""The original DINO and DINOv2 modules (torch.hub facebookresearch/dino and facebookresearch/dinov2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokenlens.families.base import BlockComponents, BlockTaps, Family, Tap, as_pair, grid_of, linear_paths
from tokenlens.tokens import Site, TokenLayout


def _flat(model: Any) -> list[nn.Module]:
    # DINOv2 may cut its blocks into chunks for FSDP, each padded in front with Identity.
    nested = [list(block) if isinstance(block, nn.ModuleList) else [block] for block in model.blocks]
    return [block for chunk in nested for block in chunk if not isinstance(block, nn.Identity)]


class DinoHub(Family):
    """DINO's ``VisionTransformer`` and DINOv2's ``DinoVisionTransformer``, known by their structure.

    Their code is no installable package, so any module with their methods and children is taken for one. DINOv2's
    attention is seen where it runs in PyTorch; with xFormers installed set ``XFORMERS_DISABLED=1`` before loading it.
    """

    name = "dino_hub"

    def matches(self, model: Any) -> bool:
        """Whether model and blocks have the methods and children of the original code."""
        if not hasattr(model, "prepare_tokens") and not hasattr(model, "prepare_tokens_with_masks"):
            return False
        if not all(hasattr(model, name) for name in ("cls_token", "pos_embed", "patch_embed", "blocks", "norm")):
            return False
        # iBOT scales its branches by bare parameters, gamma_1 and gamma_2: no module shows what is added.
        return all(
            all(hasattr(block, name) for name in ("norm1", "attn", "norm2", "mlp"))
            and getattr(block, "gamma_1", None) is None
            for block in _flat(model)
        )

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """CLS, DINOv2's registers, then the grid; the position embedding adapts to the image size."""
        registers = getattr(model, "register_tokens", None)
        prefix = ("cls",) + ("reg",) * (0 if registers is None else registers.shape[1])
        return TokenLayout(grid_of(image_size, as_pair(model.patch_embed.patch_size)), prefix)

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """``model.blocks``, out of their chunks."""
        return _flat(model)

    def taps(self, block: Any) -> BlockTaps:
        """Branches end in LayerScale (DINOv2; its drop_path runs in training only), else in attention and MLP.

        DINO calls one ``drop_path`` for both branches, which does nothing in eval mode.
        """
        return BlockTaps(
            sites={
                Site.RESID_PRE: Tap(block, "input"),
                Site.NORM1: Tap(block.norm1),
                Site.ATTN_OUT: Tap(getattr(block, "ls1", block.attn)),
                Site.RESID_MID: Tap(block.norm2, "input"),
                Site.NORM2: Tap(block.norm2),
                Site.MLP_OUT: Tap(getattr(block, "ls2", block.mlp)),
                Site.RESID_POST: Tap(block),
            },
            attention=block.attn,
        )

    def components(self, block: Any) -> BlockComponents:
        """DINO has no LayerScale, DINOv2 has it or Identity."""
        scales = ("ls1", "ls2") if isinstance(getattr(block, "ls1", None), nn.Module) else ()
        return BlockComponents(
            norm=("norm1", "norm2"),
            layer_scale=tuple(name for name in scales if not isinstance(getattr(block, name), nn.Identity)),
            qkv=("attn.qkv",),
            proj=("attn.proj",),
            mlp=linear_paths(block, "mlp"),
        )

    def final_norm(self, model: Any) -> nn.Module | None:
        """``model.norm``."""
        return model.norm
