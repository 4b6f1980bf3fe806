"""The contract of a family: where the tokens of a kind of Vision Transformer are, and which module is behind each site.

Only families and ``specialization/`` know the inside of somebody's model. See docs/add-a-family.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from tokenlens.catalog import Catalog
from tokenlens.families._attention_output import AttentionOutput, output_of
from tokenlens.families._preprocessing import stored_preprocessing
from tokenlens.families._unsupported import explain_unsupported, same_in_timm
from tokenlens.tokens import Site, TokenLayout

families = Catalog("tokenlens.families", "family", base="Family")


@dataclass(frozen=True)
class Tap:
    """The tensor of a site: the input or the output of a module.

    Of a tuple, as Hugging Face and ``nn.MultiheadAttention`` return, the first tensor is taken.

    Args:
        module: the module.
        side: whether the tensor is the module's input or its output.
        gain: a bare parameter (D,) that the block multiplies the output by, as in ``x + gamma * attn(x)``. The site is
            then the product, which no module outputs.
        plus: further modules whose outputs are added, where a block has several branches in parallel.
    """

    module: nn.Module
    side: Literal["input", "output"] = "output"
    gain: Tensor | None = None
    plus: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class BlockTaps:
    """The taps of one block.

    Args:
        sites: a tap for each site of the block. Those of ``norm1`` and ``norm2`` are the norm modules, whose input and
            output are both read. Sites that the block lacks are left out (a parallel block has no ``resid_mid``), and
            so are ``q``, ``k`` and ``v``, which are read at the attention kernel.
        attention: the module inside which the attention kernel runs, once per forward pass; None where attention is
            left out, because its pattern is not what the block mixes tokens with.
        parallel: number of attentions that run inside that module, side by side; the heads of all of them are joined.
        sequence_first: whether the tensors of the block are (tokens, images, channels), as ``nn.MultiheadAttention``
            takes them by default, instead of (images, tokens, channels).
        queries: number of tokens that attend, the first ones; None for all.
        mlp_hidden: the activations of the neurons of the MLP, (images, tokens, neurons), where a token may be appended
            to those of the model; None where they are not known.
    """

    sites: Mapping[Site, Tap]
    attention: nn.Module | None
    parallel: int = 1
    sequence_first: bool = False
    queries: int | None = None
    mlp_hidden: Tap | None = None


@dataclass(frozen=True)
class BlockComponents:
    """The modules of one block that can be specialized, as paths inside the block; empty where it has none.

    Args:
        norm: the norms over whole tokens, in order (not those of queries and keys).
        layer_scale: the gains per channel of both branches; a bare parameter is named like a module.
        qkv: the fused projection, or those of queries, keys and values.
        proj: the output projection of attention.
        mlp: the linear maps of the MLP.
        refused: the reason for each component that the block has, but not as separate modules.
    """

    norm: tuple[str, ...] = ()
    layer_scale: tuple[str, ...] = ()
    qkv: tuple[str, ...] = ()
    proj: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def of(self, component: str) -> tuple[str, ...]:
        """Return the paths of one component, or raise LookupError with the reason if it is refused."""
        if component in self.refused:
            raise LookupError(f"{component} cannot be specialized in this model: {self.refused[component]}")
        paths: tuple[str, ...] = getattr(self, component)
        return paths


@dataclass(frozen=True)
class Pooling:
    """The module in which a latent, a query that is a weight, pools the tokens by attention (a MAP head).

    Args:
        module: takes tokens (B, T, D), and returns the latent (B, D), or (B, latents, D).
        latents: number of latents.
        patches_only: whether it gets the patches without the special tokens.
    """

    module: nn.Module
    latents: int = 1
    patches_only: bool = False


class Family(ABC):
    """The knowledge about one kind of Vision Transformer; a family never converts or changes a model."""

    name: str = ""

    def matches(self, model: nn.Module) -> bool:
        """Return whether the model is of this family; not needed in a family that users pass themselves."""
        return False

    @abstractmethod
    def layout(self, model: nn.Module, image_size: tuple[int, int]) -> TokenLayout:
        """Return the token layout for images of (height, width) pixels; raise ValueError if they do not fit."""

    def block_layout(self, block: nn.Module, layout: TokenLayout) -> TokenLayout:
        """Return the tokens of one block of a model with this layout: the same, unless the block lacks some of them."""
        return layout

    def notes(self, model: nn.Module) -> list[str]:
        """Return sentences for the reports on what is left out of this model, or runs otherwise, and why."""
        return []

    @abstractmethod
    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return the transformer blocks, first to last."""

    @abstractmethod
    def taps(self, block: nn.Module) -> BlockTaps:
        """Return the module behind each site of one block."""

    def components(self, block: nn.Module) -> BlockComponents:
        """Return the modules of one block that can be specialized; not needed for analysis.

        Raises:
            LookupError: if the family does not define this method.
        """
        raise LookupError(
            f"the family {type(self).__qualname__} does not define which modules of a block can be specialized; add a "
            "method components() (docs/add-a-family.md)"
        )

    def attention_output(self, block: nn.Module) -> AttentionOutput:
        """Return the maps from the heads of a block's attention to its ``attn_out``.

        By default the output projection and the first LayerScale of ``components``; a family with a norm or a gate
        between them, or after, names all maps itself.

        Raises:
            LookupError: if they are not known, with the reason.
        """
        components = self.components(block)
        if len(components.of("proj")) != 1:
            raise LookupError(f"the output projection of the attention of a {type(block).__qualname__} is not known")
        return output_of(block, components.proj + components.layer_scale[:1])

    def final_norm(self, model: nn.Module) -> nn.Module | None:
        """Return the norm over all tokens after the last block, or None if there is none."""
        return None

    def preprocessing(self, model: nn.Module) -> Mapping[str, Any]:
        """Return the preprocessing that the model states, in timm's words (``mean``, ``std``, …); empty for none."""
        return stored_preprocessing(model)

    def channels(self, model: nn.Module) -> int:
        """Return the number of channels of the model's images: the input of its first convolution."""
        stated = getattr(getattr(model, "config", None), "num_channels", None)
        if isinstance(stated, int):
            return stated
        first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
        return 3 if first is None else first.in_channels

    def pooling(self, model: nn.Module) -> Pooling | None:
        """Return the module that pools the tokens by the attention of a latent, or None if there is none."""
        return None

    def forward(self, model: nn.Module, images: Tensor) -> Any:
        """Run the model as its users do, on images (B, 3, H, W)."""
        return model(images)


def residual_taps(
    block: nn.Module,
    attention: nn.Module,
    norms: tuple[nn.Module, nn.Module],
    branches: tuple[nn.Module | Tap, nn.Module | Tap],
    resid_mid: Tap | None = None,
    sequence_first: bool = False,
) -> BlockTaps:
    """Return the taps of a block with two residual branches, attention and MLP.

    Args:
        block: the block.
        attention: the module inside which the attention kernel runs.
        norms: the norms of both branches.
        branches: the modules whose outputs are added to the residual stream, or their taps.
        resid_mid: the residual stream between the branches; by default the input of the second norm.
        sequence_first: as in ``BlockTaps``.
    """
    attn_out, mlp_out = (branch if isinstance(branch, Tap) else Tap(branch) for branch in branches)
    sites = {
        Site.RESID_PRE: Tap(block, "input"),
        Site.NORM1: Tap(norms[0]),
        Site.ATTN_OUT: attn_out,
        Site.RESID_MID: resid_mid or Tap(norms[1], "input"),
        Site.NORM2: Tap(norms[1]),
        Site.MLP_OUT: mlp_out,
        Site.RESID_POST: Tap(block),
    }
    return BlockTaps(sites, attention, sequence_first=sequence_first)


_COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
SHARDED = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"
TRANSPARENT = (
    _COMPILED,
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.parallel.distributed.DistributedDataParallel",
)
"""Wrappers that pass images on to the module inside as they are."""


def find_family(model: nn.Module) -> Family:
    """Find the family of a model.

    Raises:
        LookupError: if there is none, or the model is compiled; with the Vision Transformers inside it, if there are
            any, or else the reason why it cannot be analyzed, if it is a known one.
    """
    for path, module in model.named_modules():
        if is_a(module, _COMPILED) or module._compiled_call_impl is not None:
            raise LookupError(
                f"{path or 'the model'} is compiled (torch.compile); forward hooks do not fire reliably inside "
                "compiled code. Pass the original module: model._orig_mod, or a model before compile()."
            )
    family = _match(model)
    if family is None:
        raise explain_no_family(model)
    return family


def find_vits(model: nn.Module) -> dict[str, tuple[nn.Module, Family]]:
    """Find the Vision Transformers in a module, itself or inside wrappers, by path; none inside another."""

    def search(module: nn.Module, path: str) -> None:
        if module in seen:
            return
        seen.add(module)
        # Compiled and sharded modules show the attributes of the module inside as theirs.
        family = None if is_a(module, _COMPILED, SHARDED) else _match(module)
        if family is not None:
            found[path] = module, family
            return
        for name, child in module.named_children():
            search(child, f"{path}.{name}" if path else name)

    found: dict[str, tuple[nn.Module, Family]] = {}
    seen: set[nn.Module] = set()
    search(model, "")
    return found


def explain_no_family(model: nn.Module) -> LookupError:
    """Return the error for a model that is not of a family: what is inside it, or why none can analyze it."""
    cls = type(model)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if any(is_a(module, SHARDED) for module in model.modules()):
        return LookupError(
            f"the weights of this {cls.__qualname__} are sharded by FullyShardedDataParallel; pass model.module inside "
            "`with FullyShardedDataParallel.summon_full_params(model):`, or load saved weights into a plain model"
        )
    inside = [f"{path} ({type(part).__qualname__}, {family.name})" for path, (part, family) in find_vits(model).items()]
    if inside:
        count = "one Vision Transformer" if len(inside) == 1 else f"{len(inside)} Vision Transformers"
        return LookupError(
            f"{name} is not a Vision Transformer itself but holds {count}: {', '.join(inside)}. "
            f"Pass {'it' if len(inside) == 1 else 'one of them'}: model.get_submodule({inside[0].partition(' (')[0]!r})"
        )
    instead = same_in_timm(model)
    if instead is not None:
        return LookupError(
            f"tokenlens has no family for {name}, but for the same architecture of timm: {instead}. Load the weights "
            "into that model"
        )
    reason = explain_unsupported(model)
    if reason is not None:
        return LookupError(
            f"{name} cannot be analyzed: {reason}. tokenlens follows CLS and a constant number of patch tokens through "
            "blocks of attention; `tokenlens list families` shows the Vision Transformers that it knows"
        )
    return LookupError(
        f"tokenlens has no family for {name}. Known families: "
        f"{', '.join(families.names())}. Write a Family with layout(), blocks() and taps(), and pass it as family=… "
        "(docs/add-a-family.md has a complete example)."
    )


def _match(model: nn.Module) -> Family | None:
    every: Iterator[Family] = (families.get(name)() for name in families.names())
    return next((family for family in every if family.matches(model)), None)


def is_a(module: object, *classes: str) -> bool:
    """Return whether a module is an instance of one of these classes, given as import paths, without importing them.

    >>> is_a(nn.LayerNorm(4), "torch.nn.modules.normalization.LayerNorm")
    True
    """
    return any(f"{cls.__module__}.{cls.__qualname__}" in classes for cls in type(module).__mro__)


def has_attention_bias(attention: object) -> bool:
    """Return whether an attention module has a learned key beside those of the tokens, named as in PyTorch."""
    return getattr(attention, "bias_k", None) is not None


def as_height_width(size: Any) -> tuple[int, int]:
    """Convert an int or two of them to (height, width)."""
    if isinstance(size, int):
        return (size, size)
    height, width = size
    return (int(height), int(width))


def image_size_of(module: nn.Module) -> tuple[int, int] | None:
    """Return the (height, width) that a module states for its images, or None if it states none.

    Knows the attributes of timm, DINO and DINOv2, Hugging Face, torchvision, OpenAI's CLIP and open_clip. The
    preprocessing of a Transformers model goes before its configuration: DINOv2's configuration states the 518 pixels
    that it was trained for, its preprocessing the 224 that it is run at.
    """
    config = getattr(module, "config", None)
    published = (getattr(module, "pretrained_cfg", None) or {}).get("input_size")
    if published is not None and type(module).__module__.startswith("transformers."):
        return as_height_width(published[-2:])
    for owner, attribute in (
        (getattr(module, "patch_embed", None), "img_size"),
        (config, "image_size"),
        (getattr(config, "vision_config", None), "image_size"),
        (module, "image_size"),
        (module, "img_size"),
        (module, "input_resolution"),
    ):
        size = getattr(owner, attribute, None)
        if isinstance(size, Mapping):
            size = (size["height"], size["width"])
        if isinstance(size, int | Sequence):
            return as_height_width(size)
    for part in (config, getattr(config, "vision_config", None)):
        patches, patch_size = (getattr(part, name, None) for name in ("num_patches", "patch_size"))
        if isinstance(patches, int) and isinstance(patch_size, int):  # SigLIP 2: of the position embedding
            return as_height_width(math.isqrt(patches) * patch_size)
    return None if published is None else as_height_width(published[-2:])


def check_image_size(model: nn.Module, image_size: tuple[int, int], expected: tuple[int, int], hint: str = "") -> None:
    """Raise ValueError, with a hint, unless images have the (height, width) that a model takes."""
    if tuple(image_size) != expected:
        raise ValueError(
            f"this {type(model).__qualname__} takes images of {expected[0]}×{expected[1]} pixels, got "
            f"{image_size[0]}×{image_size[1]}{hint}"
        )


def linear_paths(block: nn.Module, name: str) -> tuple[str, ...]:
    """Return the paths of all ``nn.Linear`` modules in the child ``name`` of a block, in order."""
    child = block.get_submodule(name)
    return tuple(f"{name}.{path}" for path, module in child.named_modules() if isinstance(module, nn.Linear))


def grid_of(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return the patch grid of an image; raise ValueError if its sides are not multiples of the patch size."""
    if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
        raise ValueError(
            f"images of {image_size[0]}×{image_size[1]} pixels do not divide into patches of "
            f"{patch_size[0]}×{patch_size[1]}"
        )
    return (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
