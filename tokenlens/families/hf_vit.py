"""Hugging Face transformers: ViT, DeiT, ViT-MSN, I-JEPA, DINOv2 with or without registers, DINOv3, CLIP, SigLIP."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tokenlens.families.base import BlockComponents, BlockTaps, Family, Tap, as_pair, linear_paths
from tokenlens.tokens import Site, TokenLayout

# Kinds of block, by the names of their norms and of the modules that their branches end in. Dropout and drop_path are
# called twice in a block, so they are no taps; in eval mode they do nothing.
_VIT = ("ViTLayer", "DeiTLayer", "ViTMSNLayer", "IJepaLayer")
_DINO = ("Dinov2Layer", "Dinov2WithRegistersLayer", "DINOv3ViTLayer")
_CLIP = ("CLIPEncoderLayer", "SiglipEncoderLayer", "MetaClip2EncoderLayer")

_QKV = ("q_proj", "k_proj", "v_proj", "query", "key", "value")


def _kind(block: object) -> tuple[str, ...] | None:
    names = {cls.__name__ for cls in type(block).__mro__ if cls.__module__.startswith("transformers.models.")}
    return next((kind for kind in (_VIT, _DINO, _CLIP) if names & set(kind)), None)


def _blocks(trunk: Any) -> list[nn.Module]:
    """The blocks of the module that owns them and the embeddings; their place differs between releases."""
    for path in ("layers", "layer", "encoder.layer", "encoder.layers", "model.layer"):
        found = trunk
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and len(found) and all(_kind(block) for block in found):
            return list(found)
    return []


def _patch_projection(trunk: Any) -> nn.Conv2d | None:
    embeddings = getattr(trunk, "embeddings", None)
    modules = embeddings.modules() if isinstance(embeddings, nn.Module) else ()
    return next((module for module in modules if isinstance(module, nn.Conv2d)), None)


def _find_trunk(model: nn.Module) -> Any:
    """The part of a model with patch embeddings and blocks: itself, or inside a classifier or a CLIP pair."""
    return next((module for module in model.modules() if _patch_projection(module) and _blocks(module)), None)


class HuggingFaceViT(Family):
    """Vision encoders of transformers, bare or inside a model with a head; attention eager or sdpa."""

    name = "hf_vit"

    def matches(self, model: Any) -> bool:
        """Whether the model's class is from transformers and it has blocks of a known kind."""
        from_transformers = any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__)
        return from_transformers and _find_trunk(model) is not None

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """CLS if there is one, DeiT's distillation token, registers, then the grid."""
        trunk = _find_trunk(model)
        embeddings, projection = trunk.embeddings, _patch_projection(trunk)
        assert projection is not None
        # Embeddings with this switch, off by default, take one size only; the others always adapt to the image.
        if "interpolate_pos_encoding" in inspect.signature(embeddings.forward).parameters:
            expected = as_pair(embeddings.image_size if hasattr(embeddings, "image_size") else trunk.config.image_size)
            if expected != tuple(image_size):
                raise ValueError(
                    f"this {type(model).__qualname__} takes images of {expected[0]}×{expected[1]} pixels, got "
                    f"{image_size[0]}×{image_size[1]}"
                )
        has_cls = hasattr(embeddings, "cls_token") or hasattr(embeddings, "class_embedding")
        prefix = ("cls",) * has_cls + ("dist",) * hasattr(embeddings, "distillation_token")
        registers = getattr(embeddings, "register_tokens", None)
        prefix += ("reg",) * (0 if registers is None else registers.shape[1])
        patch_rows, patch_columns = as_pair(projection.stride)
        return TokenLayout((image_size[0] // patch_rows, image_size[1] // patch_columns), prefix)

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """The encoder's layers, as transformers calls them."""
        return _blocks(_find_trunk(model))

    def taps(self, block: Any) -> BlockTaps:
        """Branches end in LayerScale where there is one, else in attention and MLP."""
        if _kind(block) == _VIT:
            norm1, norm2, attention = block.layernorm_before, block.layernorm_after, block.attention
            # Until transformers 5 the residual was added inside block.output, after its dropout.
            attn_out, mlp_out = attention, block.mlp if hasattr(block, "mlp") else block.output.dropout
        elif _kind(block) == _DINO:
            norm1, norm2, attention = block.norm1, block.norm2, block.attention
            attn_out, mlp_out = block.layer_scale1, block.layer_scale2
        else:
            norm1, norm2, attention = block.layer_norm1, block.layer_norm2, block.self_attn
            attn_out, mlp_out = attention, block.mlp
        return BlockTaps(
            sites={
                Site.RESID_PRE: Tap(block, "input"),
                Site.NORM1: Tap(norm1),
                Site.ATTN_OUT: Tap(attn_out),
                Site.RESID_MID: Tap(norm2, "input"),
                Site.NORM2: Tap(norm2),
                Site.MLP_OUT: Tap(mlp_out),
                Site.RESID_POST: Tap(block),
            },
            attention=attention,
        )

    def components(self, block: Any) -> BlockComponents:
        """Queries, keys and values are three modules; their names differ between releases."""
        if _kind(block) == _VIT:
            norms = ("layernorm_before", "layernorm_after")
        elif _kind(block) == _DINO:
            norms = ("norm1", "norm2")
        else:
            norms = ("layer_norm1", "layer_norm2")
        attention = "self_attn" if _kind(block) == _CLIP else "attention"
        projections = linear_paths(block, attention)
        qkv = tuple(path for path in projections if path.rpartition(".")[2] in _QKV)
        # Until transformers 5 the MLP was in two modules called intermediate and output.
        halves = ("mlp",) if hasattr(block, "mlp") else ("intermediate", "output")
        return BlockComponents(
            norm=norms,
            layer_scale=("layer_scale1", "layer_scale2") if _kind(block) == _DINO else (),
            qkv=qkv,
            proj=tuple(path for path in projections if path not in qkv),
            mlp=tuple(path for half in halves for path in linear_paths(block, half)),
        )

    def final_norm(self, model: Any) -> nn.Module | None:
        """``layernorm`` or ``norm``; SigLIP's ``post_layernorm``, but not CLIP's, which sees the pooled CLS only."""
        trunk = _find_trunk(model)
        names = ["layernorm", "norm"]
        if not hasattr(trunk.embeddings, "class_embedding"):
            names.append("post_layernorm")
        return next((getattr(trunk, name) for name in names if isinstance(getattr(trunk, name, None), nn.Module)), None)

    def forward(self, model: Any, images: Tensor) -> Any:
        """``model(pixel_values=images)``; of an image and text pair, the image features alone."""
        if hasattr(model, "get_image_features"):
            return model.get_image_features(pixel_values=images)
        return model(pixel_values=images)
