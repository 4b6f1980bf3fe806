"""The original DINO, DINOv2 and DINOv3 models (torch.hub facebookresearch/dino, dinov2 and dinov3), and Franca's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokenlens.families._norms import SplitNorm
from tokenlens.families.base import (
    BlockComponents,
    BlockTaps,
    Family,
    as_height_width,
    grid_of,
    linear_paths,
    residual_taps,
)
from tokenlens.tokens import TokenLayout


def _flat(model: Any) -> list[nn.Module]:
    # DINOv2 can split its blocks into chunks for FSDP, each padded in front with Identity.
    nested = [list(block) if isinstance(block, nn.ModuleList) else [block] for block in model.blocks]
    return [block for chunk in nested for block in chunk if not isinstance(block, nn.Identity)]


class DinoHub(Family):
    """``VisionTransformer`` of DINO and ``DinoVisionTransformer`` of DINOv2, DINOv3 and Franca, by their structure.

    Their code is not an installable package, so any model with their methods and children matches. The attention of
    DINOv2 and Franca is seen only in PyTorch: with xFormers installed, set ``XFORMERS_DISABLED=1`` before loading the
    model. The blocks of DINOv3 get a list of tokens, which has one entry for images of one size.
    """

    name = "dino_hub"

    def matches(self, model: Any) -> bool:
        """Return whether model and blocks have the methods and children of the original code."""
        if not hasattr(model, "prepare_tokens") and not hasattr(model, "prepare_tokens_with_masks"):
            return False
        if not all(hasattr(model, name) for name in ("cls_token", "patch_embed", "blocks", "norm")):
            return False
        if not hasattr(model, "pos_embed") and not hasattr(model, "rope_embed"):
            return False
        # iBOT scales its branches by bare parameters gamma_1 and gamma_2, so no module outputs the update.
        return all(
            all(hasattr(block, name) for name in ("norm1", "attn", "norm2", "mlp"))
            and getattr(block, "gamma_1", None) is None
            for block in _flat(model)
        )

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """Return the layout: CLS, registers (DINOv3: storage tokens), then the patches of an image of any size.

        DINOv3 drops what is beyond the last whole patch; the others refuse such images.
        """
        registers = getattr(model, "register_tokens", getattr(model, "storage_tokens", None))
        prefix = ("cls",) + ("reg",) * (0 if registers is None else registers.shape[1])
        patch_size = as_height_width(model.patch_embed.patch_size)
        if hasattr(model, "rope_embed"):
            grid = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
        else:
            grid = grid_of(image_size, patch_size)
        return TokenLayout(grid, prefix, patch_size=patch_size)

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """Return ``model.blocks``, without their chunks."""
        return _flat(model)

    def taps(self, block: Any) -> BlockTaps:
        """Return the taps; branches end in LayerScale (DINOv2), else in attention and MLP.

        ``drop_path`` cannot be a tap: DINO uses one for both branches, and DINOv2 runs it in training only.
        """
        branches = getattr(block, "ls1", block.attn), getattr(block, "ls2", block.mlp)
        return residual_taps(block, block.attn, (block.norm1, block.norm2), branches)

    def components(self, block: Any) -> BlockComponents:
        """Return the components; DINO has no LayerScale, DINOv2 has it or Identity.

        Raises:
            LookupError: for a DINOv3 block with drop_path, which in training flattens the tokens of all crops into one
                list, so that their positions are lost.
        """
        if hasattr(block.attn, "forward_list") and getattr(block, "sample_drop_ratio", 0) > 0:
            raise LookupError(
                "the blocks of DINOv3 with drop_path flatten the tokens of all crops in training, so that CLS cannot "
                "be told from patches; create the model with drop_path_rate=0 to specialize it"
            )
        scales = ("ls1", "ls2") if isinstance(getattr(block, "ls1", None), nn.Module) else ()
        return BlockComponents(
            norm=("norm1", "norm2"),
            layer_scale=tuple(name for name in scales if not isinstance(getattr(block, name), nn.Identity)),
            qkv=("attn.qkv",),
            proj=("attn.proj",),
            mlp=linear_paths(block, "mlp"),
        )

    def final_norm(self, model: Any) -> nn.Module | None:
        """Return ``model.norm``; in DINOv3 models that norm CLS and registers apart from the patches, both norms."""
        untied = getattr(model, "untie_cls_and_patch_norms", False)
        if untied or getattr(model, "untie_global_and_local_cls_norm", False):
            return SplitNorm(model.cls_norm if untied else model.norm, model.norm, 1 + model.n_storage_tokens)
        return model.norm
