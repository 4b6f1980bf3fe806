"""Base class of the families of Hugging Face transformers: blocks by the names of their parts, special tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenlens.families._attention_output import AttentionOutput, output_of
from tokenlens.families.base import (
    BlockComponents,
    BlockTaps,
    Family,
    Tap,
    as_height_width,
    check_image_size,
    linear_paths,
    residual_taps,
)
from tokenlens.tokens import TokenLayout

_QKV = ("q_proj", "k_proj", "v_proj", "query", "key", "value")
_BLOCK_LISTS = ("layers", "layer", "encoder.layer", "encoder.layers", "model.layer", "encoder.blocks")


class HuggingFaceFamily(Family):
    """A vision encoder of transformers, with or without a head, with eager or sdpa attention.

    Subclasses set ``parts``: for each group of block classes the names of both norms and of attention.
    """

    parts: ClassVar[dict[tuple[str, ...], tuple[str, str, str]]]

    def matches(self, model: Any) -> bool:
        """Return whether the model is from transformers, runs on images alone, and has blocks of a known kind.

        A model that takes its image encoder from another model of transformers (LLaVA, Depth Anything) does not match;
        the encoder inside it does.
        """
        packages = _packages(model)
        if not packages or not (hasattr(model, "get_image_features") or "input_ids" not in _parameters(model.forward)):
            return False
        trunk = self.trunk(model)
        return trunk is not None and bool(packages & _packages(trunk))

    def trunk(self, model: nn.Module) -> Any:
        """Return the module with patch embeddings and blocks: the model, or a part of a classifier or of CLIP."""
        return next(
            (module for module in model.modules() if _patch_projection(module) is not None and self._blocks(module)),
            None,
        )

    def _parts(self, block: object) -> tuple[str, ...]:
        """Return the names of a block's norms and attention; none for a block of another class."""
        classes = {cls.__name__ for cls in type(block).__mro__ if cls.__module__.startswith("transformers.models.")}
        return next((names for known, names in self.parts.items() if classes & set(known)), ())

    def _blocks(self, trunk: Any) -> list[nn.Module]:
        """Return the blocks of the module that holds blocks and embeddings; their path differs between releases."""
        for path in _BLOCK_LISTS:
            found = trunk
            for name in path.split("."):
                found = getattr(found, name, None)
            if isinstance(found, nn.ModuleList) and len(found) and all(self._parts(block) for block in found):
                return list(found)
        return []

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """Return the layout: CLS and distillation token if there are any, registers, the patches, detection tokens.

        Pixio has several CLS tokens. What TIPS v2 calls registers is a second summary of the image.
        """
        trunk = self.trunk(model)
        embeddings, projection = trunk.embeddings, _patch_projection(trunk)
        assert projection is not None
        if _takes_one_size(embeddings):
            expected = as_height_width(
                embeddings.image_size if hasattr(embeddings, "image_size") else trunk.config.image_size
            )
            check_image_size(model, image_size, expected)
        classes = _count_tokens(embeddings, "cls_token") or hasattr(embeddings, "class_embedding")
        prefix = ("cls",) * classes + ("dist",) * hasattr(embeddings, "distillation_token")
        other = "summary" if type(embeddings).__name__.startswith("Tips") else "reg"
        prefix += (other,) * _count_tokens(embeddings, "register_tokens")
        start, prefix = len(prefix), prefix + ("det",) * _count_tokens(embeddings, "detection_tokens")
        rows, columns = as_height_width(projection.stride)
        grid = image_size[0] // rows, image_size[1] // columns
        return TokenLayout(grid, prefix, start, patch_size=(rows, columns))

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """Return the blocks, which transformers calls layers."""
        return self._blocks(self.trunk(model))

    def taps(self, block: Any) -> BlockTaps:
        """Return the taps; branches end in LayerScale if there is one, else in attention and MLP.

        Dropout and drop_path cannot be taps: a block calls them twice. In eval mode they do nothing. A LayerScale that
        is a bare parameter (``lambda_1``) is the gain of the tap.
        """
        norm1, norm2, attention = (getattr(block, name) for name in self._parts(block))
        if hasattr(block, "layer_scale1"):
            branches = Tap(block.layer_scale1), Tap(block.layer_scale2)
        else:
            # Some blocks add the residual inside block.output, after its dropout.
            mlp = next((getattr(block, name) for name in ("mlp", "ffn") if hasattr(block, name)), None)
            ends = attention, block.output.dropout if mlp is None else mlp
            branches = _scaled(ends[0], block, "lambda_1"), _scaled(ends[1], block, "lambda_2")
        return residual_taps(block, attention, (norm1, norm2), branches)

    def components(self, block: Any) -> BlockComponents:
        """Return the components; q, k and v are three modules, whose names differ between releases, or one."""
        *norms, attention = self._parts(block)
        projections = linear_paths(block, attention)
        qkv = tuple(path for path in projections if path.rpartition(".")[2] in (*_QKV, "qkv"))
        # Some MLPs are two modules called intermediate and output.
        halves = [name for name in ("mlp", "ffn", "intermediate", "output") if hasattr(block, name)]
        scales = ("layer_scale1", "layer_scale2", "lambda_1", "lambda_2")
        # MLCD projects (tokens, images, channels), where weights cannot be chosen by token.
        transposed = type(block).__name__ == "MLCDEncoderLayer"
        return BlockComponents(
            norm=tuple(norms),
            layer_scale=tuple(name for name in scales if _is_trained(getattr(block, name, None))),
            qkv=qkv,
            proj=() if transposed else tuple(path for path in projections if path not in qkv),
            mlp=tuple(path for half in halves for path in linear_paths(block, half)),
            refused={"proj": "it gets (tokens, images, channels)"} if transposed else {},
        )

    def attention_output(self, block: Any) -> AttentionOutput:
        """Return the output projection, then LayerScale; also where tokens come first, and it cannot be specialized."""
        projections, qkv = linear_paths(block, self._parts(block)[2]), self.components(block).qkv
        scales = (name for name in ("layer_scale1", "lambda_1") if _is_trained(getattr(block, name, None)))
        return output_of(block, [path for path in projections if path not in qkv] + list(scales))

    def final_norm(self, model: Any) -> nn.Module | None:
        """Return the final norm: ``post_layernorm`` in SigLIP and GIT, none in CLIP, where it sees the pooled CLS only.

        Backbones of transformers apply theirs to the tokens of every block whose features they return.
        """
        trunk = self.trunk(model)
        if list(getattr(trunk, "out_features", ()))[:-1]:
            return None
        names = ["layernorm", "norm", "rms_norm"]
        if not hasattr(trunk.embeddings, "class_embedding") or type(trunk).__name__.startswith("Git"):
            names.append("post_layernorm")
        found = (getattr(trunk, name, None) for name in names)
        return next((norm for norm in found if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity)), None)

    def forward(self, model: Any, images: Tensor) -> Any:
        """Run the model, or only the image encoder of a model of images and text."""
        if hasattr(model, "get_image_features"):
            return model.get_image_features(pixel_values=images)
        return model(pixel_values=images)


def _patch_projection(trunk: Any) -> nn.Conv2d | None:
    embeddings = getattr(trunk, "embeddings", None)
    modules = embeddings.modules() if isinstance(embeddings, nn.Module) else ()
    return next((module for module in modules if isinstance(module, nn.Conv2d)), None)


def _takes_one_size(embeddings: Any) -> bool:
    """Return whether embeddings do not adapt to the size of the image by themselves."""
    # With this switch, which is off by default, they take one size only; others adapt, if not by a table of positions.
    switch = "interpolate_pos_encoding" in _parameters(embeddings.forward)
    return switch or isinstance(getattr(embeddings, "position_embedding", None), nn.Embedding)


def _count_tokens(embeddings: Any, name: str) -> int:
    """Return the number of tokens of a parameter (1, tokens, channels); 0 if there is none."""
    tokens = getattr(embeddings, name, None)
    return 0 if tokens is None else int(tokens.shape[1])


def _packages(model: nn.Module) -> set[str]:
    """Return the packages of transformers that define a model's class and its bases."""
    modules = (cls.__module__ for cls in type(model).__mro__)
    return {name.rpartition(".")[0] for name in modules if name.startswith("transformers.models.")}


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _is_trained(scale: object) -> bool:
    return isinstance(scale, nn.Module | nn.Parameter) and not isinstance(scale, nn.Identity)


def _scaled(module: nn.Module, block: nn.Module, name: str) -> Tap:
    """Return the tap of a branch whose output the block multiplies by its parameter ``name``, if it has one."""
    gain = getattr(block, name, None)
    if isinstance(gain, nn.Module):  # specialized: a module instead of the parameter
        return Tap(gain)
    return Tap(module, gain=gain if isinstance(gain, nn.Parameter) else None)
