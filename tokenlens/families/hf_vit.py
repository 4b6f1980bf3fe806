"""Hugging Face transformers: ViT, DeiT, ViT-MSN, I-JEPA, DINOv2 with or without registers, DINOv3, CLIP, SigLIP."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tokenlens.families.base import BlockComponents, BlockTaps, Family, as_height_width, linear_paths, residual_taps
from tokenlens.tokens import TokenLayout

_MODULES = {
    ("ViTLayer", "DeiTLayer", "ViTMSNLayer", "IJepaLayer"): ("layernorm_before", "layernorm_after", "attention"),
    ("Dinov2Layer", "Dinov2WithRegistersLayer", "DINOv3ViTLayer"): ("norm1", "norm2", "attention"),
    ("CLIPEncoderLayer", "SiglipEncoderLayer", "MetaClip2EncoderLayer"): ("layer_norm1", "layer_norm2", "self_attn"),
}
"""Classes of blocks, and the names of their norms and their attention."""

_QKV = ("q_proj", "k_proj", "v_proj", "query", "key", "value")


def _modules(block: object) -> tuple[str, ...]:
    """Return the names of a block's norms and attention; none for a block of another class."""
    classes = {cls.__name__ for cls in type(block).__mro__ if cls.__module__.startswith("transformers.models.")}
    return next((names for known, names in _MODULES.items() if classes & set(known)), ())


def _blocks(trunk: Any) -> list[nn.Module]:
    """Return the blocks of the module that holds blocks and embeddings; their path differs between releases."""
    for path in ("layers", "layer", "encoder.layer", "encoder.layers", "model.layer"):
        found = trunk
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and len(found) and all(_modules(block) for block in found):
            return list(found)
    return []


def _patch_projection(trunk: Any) -> nn.Conv2d | None:
    embeddings = getattr(trunk, "embeddings", None)
    modules = embeddings.modules() if isinstance(embeddings, nn.Module) else ()
    return next((module for module in modules if isinstance(module, nn.Conv2d)), None)


def _find_trunk(model: nn.Module) -> Any:
    """Return the module with patch embeddings and blocks: the model, or a part of a classifier or of CLIP."""
    return next((module for module in model.modules() if _patch_projection(module) and _blocks(module)), None)


class HuggingFaceViT(Family):
    """A vision encoder of transformers, with or without a head, with eager or sdpa attention."""

    name = "hf_vit"

    def matches(self, model: Any) -> bool:
        """Return whether the model is from transformers and has blocks of a known kind."""
        from_transformers = any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__)
        return from_transformers and _find_trunk(model) is not None

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """Return the layout: CLS and distillation token if there are any, registers, then the patches."""
        trunk = _find_trunk(model)
        embeddings, projection = trunk.embeddings, _patch_projection(trunk)
        assert projection is not None
        # Embeddings with this switch, which is off by default, take one size only; others adapt to the image.
        if "interpolate_pos_encoding" in inspect.signature(embeddings.forward).parameters:
            expected = as_height_width(
                embeddings.image_size if hasattr(embeddings, "image_size") else trunk.config.image_size
            )
            if expected != tuple(image_size):
                raise ValueError(
                    f"this {type(model).__qualname__} takes images of {expected[0]}×{expected[1]} pixels, got "
                    f"{image_size[0]}×{image_size[1]}"
                )
        has_cls = hasattr(embeddings, "cls_token") or hasattr(embeddings, "class_embedding")
        prefix = ("cls",) * has_cls + ("dist",) * hasattr(embeddings, "distillation_token")
        registers = getattr(embeddings, "register_tokens", None)
        prefix += ("reg",) * (0 if registers is None else registers.shape[1])
        patch_rows, patch_columns = as_height_width(projection.stride)
        grid = (image_size[0] // patch_rows, image_size[1] // patch_columns)
        return TokenLayout(grid, prefix, patch_size=(patch_rows, patch_columns))

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """Return the blocks, which transformers calls layers."""
        return _blocks(_find_trunk(model))

    def taps(self, block: Any) -> BlockTaps:
        """Return the taps; branches end in LayerScale if there is one, else in attention and MLP.

        Dropout and drop_path cannot be taps: a block calls them twice. In eval mode they do nothing.
        """
        norm1, norm2, attention = (getattr(block, name) for name in _modules(block))
        if hasattr(block, "layer_scale1"):
            branches = block.layer_scale1, block.layer_scale2
        else:
            # Before transformers 5 the residual was added inside block.output, after its dropout.
            branches = attention, block.mlp if hasattr(block, "mlp") else block.output.dropout
        return residual_taps(block, attention, (norm1, norm2), branches)

    def components(self, block: Any) -> BlockComponents:
        """Return the components; q, k and v are three modules, whose names differ between releases."""
        *norms, attention = _modules(block)
        projections = linear_paths(block, attention)
        qkv = tuple(path for path in projections if path.rpartition(".")[2] in _QKV)
        # Before transformers 5 the MLP consisted of two modules called intermediate and output.
        halves = ("mlp",) if hasattr(block, "mlp") else ("intermediate", "output")
        return BlockComponents(
            norm=tuple(norms),
            layer_scale=("layer_scale1", "layer_scale2") if hasattr(block, "layer_scale1") else (),
            qkv=qkv,
            proj=tuple(path for path in projections if path not in qkv),
            mlp=tuple(path for half in halves for path in linear_paths(block, half)),
        )

    def final_norm(self, model: Any) -> nn.Module | None:
        """Return the final norm: ``post_layernorm`` in SigLIP, but none in CLIP, where it sees the pooled CLS only."""
        trunk = _find_trunk(model)
        names = ["layernorm", "norm"]
        if not hasattr(trunk.embeddings, "class_embedding"):
            names.append("post_layernorm")
        return next((getattr(trunk, name) for name in names if isinstance(getattr(trunk, name, None), nn.Module)), None)

    def forward(self, model: Any, images: Tensor) -> Any:
        """Run the model, or only the image encoder of a model of images and text."""
        if hasattr(model, "get_image_features"):
            return model.get_image_features(pixel_values=images)
        return model(pixel_values=images)
