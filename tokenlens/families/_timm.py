"""Base class of the families of timm: patch grid, prefix tokens, and the residual branches of a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokenlens.families._attention_output import AttentionOutput, Gate, OutputStage
from tokenlens.families.base import (
    BlockComponents,
    BlockTaps,
    Family,
    Pooling,
    Tap,
    as_height_width,
    check_image_size,
    grid_of,
    has_attention_bias,
    is_a,
    linear_paths,
    residual_taps,
)
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
_PARALLEL_THINGS = "timm.models.vision_transformer.ParallelThingsBlock"
_PARALLEL = "timm.models.vision_transformer.ParallelScalingBlock"
_LATENT = "timm.layers.attention_pool.AttentionPoolLatent"
_DIFFERENTIAL_ATTENTION = "timm.layers.diff_attention.DiffAttention"


class TimmFamily(Family):
    """A timm model with ``patch_embed``, ``blocks`` and ``norm``; subclasses name its class."""

    timm_class: str

    def matches(self, model: Any) -> bool:
        """Return whether the model is an instance of the class of timm or of a subclass."""
        return is_a(model, self.timm_class)

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """Return the layout: CLS and distillation token if there are any, registers, then the patches."""
        embeds = getattr(model, "embeds", model)
        has_cls = embeds.cls_token is not None
        has_dist = getattr(model, "dist_token", None) is not None
        registers = model.num_prefix_tokens - has_cls - has_dist
        prefix = ("cls",) * has_cls + ("dist",) * has_dist + _radio_groups(model, registers)
        biased = any(has_attention_bias(getattr(block, "attn", None)) for block in self.blocks(model))
        return TokenLayout(
            self.grid(model, image_size), prefix, patch_size=self.patch_size(model), attention_bias=biased
        )

    def patch_size(self, model: Any) -> tuple[int, int]:
        """Return height and width of a patch in pixels of the image, all strides of the embedding together."""
        return as_height_width(model.patch_embed.feat_ratio(as_scalar=False))

    def grid(self, model: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the patch grid; raise ValueError if the model does not take images of this size."""
        patch_embed = model.patch_embed
        if patch_embed.strict_img_size:
            expected = as_height_width(patch_embed.img_size)
            check_image_size(model, image_size, expected, f"; create it with img_size={image_size[0]}")
        elif not patch_embed.dynamic_img_pad:
            # Models that take any size require this; those of a fixed size drop the remainder.
            grid_of(image_size, self.patch_size(model))
        rows, columns = patch_embed.dynamic_feat_size(tuple(image_size))
        return (int(rows), int(columns))

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """Return ``model.blocks``."""
        return list(model.blocks)

    def taps(self, block: Any) -> BlockTaps:
        """Return the taps; residual branches end in ``drop_path1`` and ``drop_path2``, after LayerScale.

        A post-norm block adds the output of its norm to the residual, x + norm1(attn(x)). A parallel block adds the sum
        of attention and MLP, both after one norm, so it has no ``resid_mid``.

        Raises:
            LookupError: for another kind of block, or attention without exactly one softmax per head.
        """
        if is_a(block, _PARALLEL):
            norm1 = Tap(block.in_norm)
            ends = {Site.RESID_PRE: Tap(block, "input"), Site.NORM1: norm1, Site.RESID_POST: Tap(block)}
            return BlockTaps(sites=ends, attention=block)
        if is_a(block, _PARALLEL_THINGS):
            return _parallel_taps(block)
        if is_a(block, *_PRE_NORM):
            resid_mid = Tap(block.norm2, "input")
        elif is_a(block, *_POST_NORM):
            resid_mid = Tap(block.mlp, "input")
        else:
            raise _unsupported(block, "it is not a pre-norm, post-norm or parallel block of timm")
        if is_a(block.attn, _DIFFERENTIAL_ATTENTION):
            raise _unsupported(
                block.attn, "it subtracts two softmaxes per head, so there is no single attention pattern"
            )
        branches = block.drop_path1, block.drop_path2
        return residual_taps(block, block.attn, (block.norm1, block.norm2), branches, resid_mid)

    def components(self, block: Any) -> BlockComponents:
        """Return the components; LayerScale can be modules or bare parameters, and qkv one module or three.

        In a parallel block qkv and MLP cannot be separated: one product computes q, k, v and the MLP's first half.
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
        if is_a(block, _PARALLEL_THINGS):
            attentions = [f"attns.{index}" for index in range(len(block.attns))]
            branches = attentions + [f"ffns.{index}" for index in range(len(block.ffns))]
            return BlockComponents(
                norm=tuple(f"{path}.norm" for path in branches),
                layer_scale=_trained(block, *(f"{path}.ls" for path in branches)),
                qkv=tuple(f"{path}.attn.qkv" for path in attentions),
                proj=tuple(f"{path}.attn.proj" for path in attentions),
                mlp=linear_paths(block, "ffns"),
            )
        separate = getattr(block.attn, "qkv", None) is None
        return BlockComponents(
            norm=("norm1", "norm2"),
            layer_scale=_trained(block, "ls1", "ls2") or _trained(block, "gamma_1", "gamma_2"),
            qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj") if separate else ("attn.qkv",),
            proj=("attn.proj",),
            mlp=linear_paths(block, "mlp"),
        )

    def attention_output(self, block: Any) -> AttentionOutput:
        """Return norm and gate of the attention, its projection, then LayerScale, or the norm of a post-norm block.

        Raises:
            LookupError: for a parallel block, which adds attention and MLP in one product, and for a gate in a
                post-norm block.
        """
        if is_a(block, _PARALLEL):
            raise LookupError("the block adds attention and MLP before its residual stream")
        if is_a(block, _PARALLEL_THINGS):
            return AttentionOutput(tuple((*_after_heads(branch.attn), *_scale(branch, "ls")) for branch in block.attns))
        if not is_a(block, *_POST_NORM):
            return AttentionOutput(((*_after_heads(block.attn), *_scale(block, "ls1", "gamma_1")),))
        if getattr(block.attn, "gate", None) is not None:
            raise LookupError("the gate of the attention reads the residual stream, not the output of norm1")
        return AttentionOutput(((*_after_heads(block.attn), block.norm1),))

    def final_norm(self, model: Any) -> nn.Module | None:
        """Return ``model.norm``, or None if the model normalizes only after pooling (``fc_norm``)."""
        return None if isinstance(model.norm, nn.Identity) else model.norm

    def pooling(self, model: Any) -> Pooling | None:
        """Return ``model.attn_pool`` where it has a latent (SigLIP, Perception Encoder)."""
        pool: Any = getattr(model, "attn_pool", None)
        if not is_a(pool, _LATENT):
            return None
        return Pooling(pool, pool.latent_len, patches_only=not getattr(model, "pool_include_prefix", True))


def _after_heads(attention: Any) -> tuple[OutputStage, ...]:
    """Return norm, gate and output projection of an attention."""
    norm, gate = getattr(attention, "norm", None), getattr(attention, "gate", None)
    found: tuple[OutputStage, ...] = () if isinstance(norm, nn.Identity | None) else (norm,)
    return (*found, *(() if gate is None else (Gate(gate),)), attention.proj)


def _scale(owner: nn.Module, *names: str) -> tuple[OutputStage, ...]:
    """Return the LayerScale of a branch, a module or a bare parameter, if there is one."""
    return tuple(getattr(owner, name) for name in _trained(owner, *names))


def _trained(block: nn.Module, *names: str) -> tuple[str, ...]:
    """Return the paths of attributes that exist and are neither None nor Identity."""

    def find(path: str) -> Any:
        found: Any = block
        for name in path.split("."):
            found = getattr(found, name, None)
        return found

    return tuple(name for name in names if not isinstance(find(name), nn.Identity | None))


def _parallel_taps(block: Any) -> BlockTaps:
    """Return the taps of N attentions in parallel, followed by N MLPs in parallel, each after a norm of its own.

    ``attn_out`` and ``mlp_out`` are the sums of the branches, and the heads of all attentions are joined. The sites
    ``norm1`` and ``norm2`` are left out: the block has N different norms at each of them.
    """
    attention, mlp = list(block.attns), list(block.ffns)
    sites = {
        Site.RESID_PRE: Tap(block, "input"),
        Site.ATTN_OUT: Tap(attention[0], plus=tuple(attention[1:])),
        Site.RESID_MID: Tap(mlp[0], "input"),
        Site.MLP_OUT: Tap(mlp[0], plus=tuple(mlp[1:])),
        Site.RESID_POST: Tap(block),
    }
    return BlockTaps(sites, attention=block, parallel=len(attention))


def _radio_groups(model: Any, extra: int) -> tuple[str, ...]:
    """Return the groups of RADIO's tokens behind the first CLS, which timm all calls registers.

    C-RADIOv4 has three CLS tokens, one for each teacher, and seven registers (``RadioConfig`` of transformers). For
    other versions no library states how many of them are of which kind, so they are one group, ``other``.
    """
    name = str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", ""))
    if "radio" not in name:
        return ("reg",) * extra
    return ("summary",) * 2 + ("reg",) * 7 if "radio_v4" in name and extra == 9 else ("other",) * extra


def _unsupported(module: nn.Module, why: str) -> LookupError:
    cls = type(module)
    return LookupError(
        f"the blocks of this model are not supported, because of {cls.__module__}.{cls.__qualname__}: {why}. "
        "Pass your own Family that names the sites of these blocks (docs/add-a-family.md)."
    )
