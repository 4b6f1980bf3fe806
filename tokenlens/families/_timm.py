"""What the ViTs of timm have in common: patch grid, prefix tokens, and the residual branches of a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokenlens.families.base import BlockComponents, BlockTaps, Family, Tap, as_pair, grid_of, is_a, linear_paths
from tokenlens.tokens import Site, TokenLayout

_PRE_NORM = (
    "timm.models.vision_transformer.Block",
    "timm.models.eva.EvaBlock",
    "timm.models.beit.Block",
    "timm.models.vision_transformer_relpos.RelPosBlock",
)
_POST_NORM = (
    "timm.models.vision_transformer.ResPostBlock",
    "timm.models.eva.EvaBlockPostNorm",
    "timm.models.vision_transformer_relpos.ResPostRelPosBlock",
)
_PARALLEL = "timm.models.vision_transformer.ParallelScalingBlock"
_DIFFERENTIAL_ATTENTION = "timm.layers.diff_attention.DiffAttention"


class TimmFamily(Family):
    """A timm model with ``patch_embed``, ``blocks`` and ``norm``; each family names its class."""

    timm_class: str

    def matches(self, model: Any) -> bool:
        """Whether the model is an instance of timm's class or of a subclass."""
        return is_a(model, self.timm_class)

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """CLS if the model has one, the distillation token, registers, then the grid."""
        embeds = getattr(model, "embeds", model)
        has_cls = embeds.cls_token is not None
        has_dist = getattr(model, "dist_token", None) is not None
        registers = model.num_prefix_tokens - has_cls - has_dist
        prefix = ("cls",) * has_cls + ("dist",) * has_dist + ("reg",) * registers
        return TokenLayout(grid=self.grid(model, image_size), prefix=prefix)

    def grid(self, model: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        """The patch grid; ValueError where the model does not take images of this size."""
        patch_embed = model.patch_embed
        if patch_embed.strict_img_size:
            expected = as_pair(patch_embed.img_size)
            if expected != tuple(image_size):
                raise ValueError(
                    f"this {type(model).__qualname__} takes images of {expected[0]}×{expected[1]} pixels, got "
                    f"{image_size[0]}×{image_size[1]}; create it with img_size={image_size[0]}"
                )
        elif not patch_embed.dynamic_img_pad:
            # timm insists on this where the size is free; a model of one size drops the remainder.
            grid_of(image_size, as_pair(patch_embed.feat_ratio(as_scalar=False)))
        rows, columns = patch_embed.dynamic_feat_size(tuple(image_size))
        return (int(rows), int(columns))

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """``model.blocks``."""
        return list(model.blocks)

    def taps(self, block: Any) -> BlockTaps:
        """Residual branches end in ``drop_path1`` and ``drop_path2``, after LayerScale.

        In a post-norm block (x + norm1(attn(x))) the output of norm1 is what is added to the residual. A parallel
        block has one norm, then attention and MLP side by side whose sum is added: no ``resid_mid``.

        Raises:
            LookupError: for another kind of block, or one without one softmax per head.
        """
        if is_a(block, _PARALLEL):
            norm1 = Tap(block.in_norm)
            ends = {Site.RESID_PRE: Tap(block, "input"), Site.NORM1: norm1, Site.RESID_POST: Tap(block)}
            return BlockTaps(sites=ends, attention=block)
        if is_a(block, *_PRE_NORM):
            resid_mid = Tap(block.norm2, "input")
        elif is_a(block, *_POST_NORM):
            resid_mid = Tap(block.mlp, "input")
        else:
            raise _unsupported(block, "it is not a pre-norm, post-norm or parallel block of timm's")
        if is_a(block.attn, _DIFFERENTIAL_ATTENTION):
            raise _unsupported(block.attn, "it subtracts two softmaxes per head, so there is no one pattern")
        return BlockTaps(
            sites={
                Site.RESID_PRE: Tap(block, "input"),
                Site.NORM1: Tap(block.norm1),
                Site.ATTN_OUT: Tap(block.drop_path1),
                Site.RESID_MID: resid_mid,
                Site.NORM2: Tap(block.norm2),
                Site.MLP_OUT: Tap(block.drop_path2),
                Site.RESID_POST: Tap(block),
            },
            attention=block.attn,
        )

    def components(self, block: Any) -> BlockComponents:
        """LayerScale may be modules (``ls1``) or bare parameters (``gamma_1``); q, k and v one module or three.

        A parallel block computes q, k, v and the MLP's first half in one product: these two cannot be told apart.
        """
        if is_a(block, _PARALLEL):
            fused = "the block computes q, k, v and the first half of its MLP in one product"
            separate = block.out_proj is None
            return BlockComponents(
                norm=("in_norm",),
                layer_scale=_trained(block, "ls"),
                proj=("attn_out_proj",) if separate else (),
                refused={"qkv": fused, "mlp": fused}
                | ({} if separate else {"proj": "the block projects attention and MLP in one product"}),
            )
        separate = getattr(block.attn, "qkv", None) is None
        return BlockComponents(
            norm=("norm1", "norm2"),
            layer_scale=_trained(block, "ls1", "ls2") or _trained(block, "gamma_1", "gamma_2"),
            qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj") if separate else ("attn.qkv",),
            proj=("attn.proj",),
            mlp=linear_paths(block, "mlp"),
        )

    def final_norm(self, model: Any) -> nn.Module | None:
        """``model.norm``, or None if the model normalizes only after pooling (``fc_norm``)."""
        return None if isinstance(model.norm, nn.Identity) else model.norm


def _trained(block: nn.Module, *names: str) -> tuple[str, ...]:
    """Those of the names that are there and are neither None nor Identity."""
    return tuple(name for name in names if not isinstance(getattr(block, name, None), nn.Identity | None))


def _unsupported(module: nn.Module, why: str) -> LookupError:
    cls = type(module)
    return LookupError(
        f"the blocks of this model are not supported, because of {cls.__module__}.{cls.__qualname__}: {why}. "
        "Hand over a Family of your own that names the sites it has (docs/add-a-family.md)."
    )
